"""One model over several processes: the first rank decides and sends commands, the others follow.

engine process: EngineCore → LeadingRunner --commands--> followers: follow
                              ModelRunner   <--sums-->    ModelRunner
"""
