/**
 * A conversation as a tree: each turn knows the one that it follows, so that an edit or a retry is a new branch beside
 * the old one. At each fork one branch is chosen; the chosen ones from the root on are what is shown and sent.
 *
 * @typedef {{id: string, name: string, type?: string, width?: number, height?: number, data?: string, url?: string}} Picture
 * @typedef {{id: string, name: string, arguments: string}} Call
 * @typedef {{firstTokenMs: number|null, totalMs: number, promptTokens: number, cachedTokens: number,
 *   completionTokens: number, cost: number, tokensPerSecond: number|null}} Figures
 * @typedef {{id: string, parent: string, children: string[], chosen: number, role: "user"|"assistant"|"tool",
 *   text: string, pictures?: Picture[], calls?: Call[], callId?: string, status?: "running"|"done"|"stopped"|"failed",
 *   finishReason?: string|null, figures?: Figures|null, error?: {title: string, detail: string, needsKey: boolean}|null,
 *   isJson?: boolean, attention?: object|null}} Turn
 * @typedef {{turns: Record<string, Turn>, root: {children: string[], chosen: number}}} Tree
 */

export const ROOT = "root";

/** @returns {Tree} */
export function emptyTree() {
  return { turns: Object.create(null), root: { children: [], chosen: -1 } };
}

/** @param {Tree} tree @param {string} id */
function forkAt(tree, id) {
  return id === ROOT ? tree.root : tree.turns[id];
}

/**
 * Adds a turn after another one and chooses it.
 * @param {Tree} tree @param {string} parent @param {Partial<Turn>} fields
 * @returns {Turn}
 */
export function addTurn(tree, parent, fields) {
  const id = crypto.randomUUID ? crypto.randomUUID() : Array.from(crypto.getRandomValues(new Uint32Array(4))).join("-");
  const turn = /** @type {Turn} */ ({ text: "", ...fields, id, parent, children: [], chosen: -1 });
  tree.turns[id] = turn;
  const fork = forkAt(tree, parent);
  fork.children.push(id);
  fork.chosen = fork.children.length - 1;
  return turn;
}

/** @param {Tree} tree @returns {Turn[]} the chosen turns, oldest first */
export function chosenTurns(tree) {
  const turns = [];
  let fork = tree.root;
  while (fork.chosen >= 0) {
    const turn = tree.turns[fork.children[fork.chosen]];
    turns.push(turn);
    fork = turn;
  }
  return turns;
}

/** @param {Tree} tree @param {string} id @returns {Turn[]} the turns that lead to this one, with it, oldest first */
export function turnsUpTo(tree, id) {
  const turns = [];
  for (let at = id; at !== ROOT; at = tree.turns[at].parent) {
    turns.unshift(tree.turns[at]);
  }
  return turns;
}

/** @param {Tree} tree @returns {string} the id of the last chosen turn, or the root's */
export function lastTurn(tree) {
  return chosenTurns(tree).at(-1)?.id ?? ROOT;
}

/** @param {Tree} tree @param {Turn} turn @returns {{index: number, count: number}} its place among its branches */
export function branchOf(tree, turn) {
  const fork = forkAt(tree, turn.parent);
  return { index: fork.children.indexOf(turn.id), count: fork.children.length };
}

/** Chooses the branch that is so many places further. */
export function switchBranch(tree, turn, step) {
  const fork = forkAt(tree, turn.parent);
  const { index, count } = branchOf(tree, turn);
  fork.chosen = Math.min(count - 1, Math.max(0, index + step));
}

/** @param {Tree} tree @returns {Tree} a copy that shares nothing which changes */
export function copyTree(tree) {
  const copy = emptyTree();
  copy.root = { children: [...tree.root.children], chosen: tree.root.chosen };
  for (const [id, turn] of Object.entries(tree.turns)) {
    copy.turns[id] = { ...turn, children: [...turn.children] };
  }
  return copy;
}
