/**
 * Conversations as files. What is read is not trusted: only fields that are known, of the right type, are taken over, and
 * pictures only as data or as http(s) addresses, which the page never loads.
 */

import { defaultSettings } from "./settings.js";
import { emptyTree } from "./tree.js";

const FORMAT = "spyglass-conversation";
const VERSION = 1;
const MOST_TURNS = 10_000;
const ROLES = ["user", "assistant", "tool"];
const STATES = ["done", "stopped", "failed"];
const PICTURE_DATA = /^data:image\/(?:png|jpeg|webp|gif);base64,[A-Za-z0-9+/]+={0,2}$/;

export class ImportError extends Error {}

/** @param {import("./chats.js").Lane[]} lanes @param {string} model @returns {string} the file */
export function exportLanes(lanes, model) {
  const kept = lanes.map(({ tree, settings }) => ({
    settings,
    tree: {
      root: tree.root,
      turns: Object.fromEntries(Object.entries(tree.turns).map(([id, turn]) => [id, { ...turn, attention: undefined }])),
    },
  }));
  const file = { format: FORMAT, version: VERSION, exported: new Date().toISOString(), model, lanes: kept };
  return JSON.stringify(file, null, 2);
}

/**
 * @param {string} text of a file
 * @returns {import("./chats.js").Lane[]}
 * @throws {ImportError} it is no conversation
 */
export function importLanes(text) {
  let file;
  try {
    file = JSON.parse(text);
  } catch {
    throw new ImportError("This file is no JSON.");
  }
  if (file?.format !== FORMAT) {
    throw new ImportError("This file is no conversation of this page.");
  }
  if (file.version !== VERSION) {
    throw new ImportError("This conversation was exported by another version of the page.");
  }
  return readLanes(file.lanes);
}

/** @param {unknown} given @returns {import("./chats.js").Lane[]} */
export function readLanes(given) {
  require(Array.isArray(given) && (given.length === 1 || given.length === 2), "lanes");
  return given.map((lane) => ({ settings: readSettings(lane?.settings), tree: readTree(lane?.tree) }));
}

function readSettings(given) {
  require(isObject(given), "settings");
  const settings = defaultSettings();
  for (const [name, usual] of Object.entries(settings)) {
    if (typeof given[name] === typeof usual) {
      settings[name] = given[name];
    }
  }
  settings.detail = ["auto", "low", "high"].includes(settings.detail) ? settings.detail : "auto";
  return settings;
}

function readTree(given) {
  require(isObject(given) && isObject(given.turns) && isObject(given.root), "tree");
  require(Object.keys(given.turns).length <= MOST_TURNS, "turns");
  const tree = emptyTree();
  const waiting = [["root", given.root, tree.root]];
  while (waiting.length) {
    const [id, from, to] = waiting.pop();
    require(Array.isArray(from.children), "children");
    for (const child of from.children) {
      require(typeof child === "string" && Object.hasOwn(given.turns, child) && !(child in tree.turns), "children");
      require(child !== "root", "children");
      const turn = readTurn(given.turns[child], child, id);
      tree.turns[child] = turn;
      to.children.push(child);
      waiting.push([child, given.turns[child], turn]);
    }
    const isChosen = Number.isInteger(from.chosen) && from.chosen >= 0 && from.chosen < to.children.length;
    to.chosen = isChosen ? from.chosen : to.children.length - 1;
  }
  return tree;
}

function readTurn(given, id, parent) {
  require(isObject(given) && ROLES.includes(given.role) && typeof given.text === "string", "turn");
  const turn = { id, parent, children: [], chosen: -1, role: given.role, text: given.text };
  if (given.role === "user") {
    turn.pictures = list(given.pictures).map(readPicture);
  } else if (given.role === "tool") {
    turn.callId = string(given.callId);
  } else {
    turn.calls = list(given.calls).map((call) => ({
      id: string(call?.id),
      name: string(call?.name),
      arguments: string(call?.arguments),
    }));
    turn.status = STATES.includes(given.status) ? given.status : "stopped";
    turn.finishReason = typeof given.finishReason === "string" ? given.finishReason : null;
    turn.isJson = given.isJson === true;
    turn.figures = readFigures(given.figures);
    turn.error = readError(given.error);
    turn.attention = readAttention(given.attention);
  }
  return turn;
}

function readPicture(given) {
  require(isObject(given), "picture");
  const picture = { id: string(given.id), name: string(given.name) };
  if (typeof given.url === "string") {
    require(/^https?:\/\//i.test(given.url) && URL.canParse(given.url), "url of a picture");
    return { ...picture, url: given.url };
  }
  require(typeof given.data === "string" && PICTURE_DATA.test(given.data), "data of a picture");
  require(isCount(given.width) && isCount(given.height), "size of a picture");
  return { ...picture, data: given.data, type: string(given.type), width: given.width, height: given.height };
}

function readFigures(given) {
  if (!isObject(given)) {
    return null;
  }
  const number = (value) => (typeof value === "number" && Number.isFinite(value) && value >= 0 ? value : 0);
  const some = (value) => (typeof value === "number" && Number.isFinite(value) && value >= 0 ? value : null);
  return {
    firstTokenMs: some(given.firstTokenMs),
    tokensPerSecond: some(given.tokensPerSecond),
    totalMs: number(given.totalMs),
    promptTokens: number(given.promptTokens),
    cachedTokens: number(given.cachedTokens),
    completionTokens: number(given.completionTokens),
    cost: number(given.cost),
  };
}

function readError(given) {
  return isObject(given)
    ? { title: string(given.title), detail: string(given.detail), needsKey: given.needsKey === true }
    : null;
}

function readAttention(given) {
  if (!isObject(given) || !Array.isArray(given.images) || !Array.isArray(given.tokens)) {
    return null;
  }
  const isImage = (image) => isObject(image) && isCount(image.rows) && isCount(image.columns) && image.rows * image.columns < 1e6;
  const isMap = (map) => map === null || (isObject(map) && typeof map.data === "string" && typeof map.scale === "number");
  const isToken = (token) => isObject(token) && typeof token.token === "string" && Array.isArray(token.maps) && token.maps.every(isMap);
  return given.images.every(isImage) && given.tokens.every(isToken) ? { images: given.images, tokens: given.tokens } : null;
}

function require(isRight, what) {
  if (!isRight) {
    throw new ImportError(`The conversation cannot be read: ${what}.`);
  }
}

function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isCount(value) {
  return Number.isInteger(value) && value > 0 && value < 1e6;
}

function list(value) {
  return Array.isArray(value) ? value : [];
}

function string(value) {
  return typeof value === "string" ? value : "";
}
