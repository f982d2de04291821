"""Questions that have nothing to do with any picture.

The model is to answer them as the text model alone would; it is shown what that says.
"""

QUESTIONS = (
    "What is the capital of France?", "What is the capital of Japan?", "Who wrote Romeo and Juliet?",
    "How many days are in a week?", "What is two plus two?", "What is 12 times 3?", "Tell me a joke.",
    "Write a short poem about the sea.", "What is photosynthesis?", "Explain gravity in one sentence.",
    "What is the largest planet?", "Who was Albert Einstein?", "How do I boil an egg?", "What is a prime number?",
    "Translate 'good morning' to Spanish.", "What is the boiling point of water?", "Name three fruits.",
    "Give me a recipe for pancakes.", "What is machine learning?", "How far is the moon?", "What is a noun?",
    "Write a haiku about winter.", "What is the speed of light?", "Who painted the Mona Lisa?", "What is DNA?",
    "How do birds fly?", "What causes rain?", "Tell me a fun fact.", "What is the meaning of life?", "Who are you?",
    "What is your name?", "What can you do?", "Hello!", "Hi, how are you?", "Thank you!", "Good morning!",
    "What is Python?", "Write a function that adds two numbers in Python.", "What is an algorithm?", "What is HTML?",
    "How do I learn to cook?", "What is the best way to learn a language?", "Give me tips for better sleep.",
    "What is a democracy?", "When did World War II end?", "Who was the first president of the United States?",
    "What is the Great Wall of China?", "Where is Mount Everest?", "What is the longest river?",
    "What is an ocean?",
    "How many continents are there?", "What language is spoken in Brazil?", "What do pandas eat?",
    "Why is the sky blue?",
    "How does a car engine work?", "What is electricity?", "What is an atom?", "What is water made of?",
    "What is a verb?", "Give me a synonym for happy.", "What is the opposite of hot?", "Spell the word necessary.",
    "Write a sentence with the word river.", "Tell me a story about a dragon.", "What is a metaphor?",
    "How do plants grow?", "What is a healthy breakfast?", "How much water should I drink?", "What is yoga?",
    "How do I write a good email?", "Give me an idea for a birthday gift.", "Plan a trip to Rome.",
    "What is inflation?", "What is a bank?", "How do I save money?", "What is the stock market?",
    "Who invented the telephone?", "What is the internet?", "How does a computer work?", "What is an operating system?",
    "What is the square root of 81?", "Solve x + 5 = 12.", "What is 15 percent of 200?", "What is pi?",
    "What is a triangle's area?", "Define friendship.", "What is love?", "What makes a good leader?",
    "List the months of the year.", "What is the first month of the year?", "How many hours are in a day?",
    "What is jazz?", "Who was Mozart?", "What is a guitar?", "What is football?", "How is chess played?",
    "What is the fastest animal?", "Do fish sleep?", "What is a mammal?", "How long do cats live?",
)  # fmt: skip
