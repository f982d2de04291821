/** Where one writes: words, pictures by file, paste, drop and address, and what the prompt will be. */

import { money, number } from "../format.js";
import { announce } from "../parts/announce.js";
import { Icon, IconButton } from "../parts/icons.js";
import { html, useEffect, useId, useRef, useState } from "../ui.js";
import { useEstimate } from "./estimate.js";
import { PictureError, USUAL_MOST_BYTES, pictureAt, picturesIn, readPicture } from "./pictures.js";
import { TilePreview } from "./tiles.js";
import { Thumb } from "./turn.js";

export function Composer({ session, chats }) {
  const [problem, setProblem] = useState("");
  const [isDropping, setDropping] = useState(false);
  const [isAddressOpen, setAddressOpen] = useState(false);
  const file = useRef(null);
  const input = useRef(null);
  const estimate = useEstimate(session, chats);
  const { text, pictures } = chats.draft;
  const wrong = chats.problem;
  const add = (files) => addFiles(session, chats, files).then(setProblem);
  useDrops(setDropping, add);
  useEffect(() => grow(input.current), [text]);
  const send = () => {
    if (!wrong) {
      session.withKey(() => chats.send());
    }
  };
  const press = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      send();
    }
  };
  const paste = (event) => {
    const files = picturesIn(event.clipboardData);
    if (files.length) {
      event.preventDefault();
      add(files);
    }
  };
  const remove = (id) => chats.setDraft({ pictures: pictures.filter((one) => one.id !== id) });
  return html`<div class="composer-frame"><form class=${isDropping ? "composer dropping" : "composer"} aria-label="Your question" onSubmit=${(event) => { event.preventDefault(); send(); }}>
    ${pictures.length > 0 && html`<${Pending} ...${{ pictures, remove, estimate }} />`}
    ${isAddressOpen && html`<${Address} onAdd=${(picture) => { chats.setDraft({ pictures: [...pictures, picture] }); setAddressOpen(false); input.current.focus(); }} onClose=${() => setAddressOpen(false)} />`}
    <label class="off-screen" for="question">Message</label>
    <textarea
      ref=${input} id="question" rows="1" placeholder="Ask something, or drop a picture here" value=${text}
      onInput=${(event) => chats.setDraft({ text: event.currentTarget.value })} onKeyDown=${press} onPaste=${paste}
    ></textarea>
    <div class="composer-foot">
      <div class="row">
        <${IconButton} name="picture" label="Add pictures" onClick=${() => file.current.click()} />
        <${IconButton} name="link" label="Add a picture by address" aria-expanded=${isAddressOpen ? "true" : "false"} onClick=${() => setAddressOpen(!isAddressOpen)} />
        <input
          ref=${file} type="file" accept="image/*" multiple hidden aria-label="Pictures"
          onChange=${(event) => { add([...event.currentTarget.files]); event.currentTarget.value = ""; }}
        />
      </div>
      <${Cost} estimate=${estimate} />
      ${chats.isRunning
        ? html`<button type="button" class="button primary" onClick=${() => chats.stop()}><${Icon} name="stop" />Stop</button>`
        : html`<button type="submit" class="button primary" disabled=${Boolean(wrong) || (!text.trim() && !pictures.length)}><${Icon} name="send" />Send</button>`}
    </div>
    ${(problem || wrong) && html`<p class="composer-problem" role="alert">${problem || `Settings: ${wrong.text}`}</p>`}
  </form></div>`;
}

function Pending({ pictures, remove, estimate }) {
  const own = estimate?.canvases.slice(-pictures.length) ?? [];
  return html`<ul class="pending">
    ${pictures.map((picture, index) => html`<li key=${picture.id}>
      ${own.length === pictures.length && picture.data ? html`<${TilePreview} picture=${picture} canvas=${own[index]} />` : html`<${Thumb} picture=${picture} />`}
      <div class="pending-name"><span>${picture.name}</span><${IconButton} name="close" label=${`Remove ${picture.name}`} onClick=${() => remove(picture.id)} /></div>
    </li>`)}
  </ul>`;
}

function Cost({ estimate }) {
  if (!estimate) {
    return html`<span class="estimate hint soft" aria-hidden="true">Enter sends, Shift+Enter starts a line</span>`;
  }
  const isTooLong = estimate.count >= estimate.most;
  return html`<span class=${isTooLong ? "estimate bad" : "estimate soft"}>
    ${number(estimate.count)} of ${number(estimate.most)} tokens${estimate.cost === null ? "" : ` · ${money(estimate.cost)}`}
  </span>`;
}

function Address({ onAdd, onClose }) {
  const [problem, setProblem] = useState("");
  const input = useRef(null);
  const field = useId("address");
  useEffect(() => input.current.focus(), []);
  const add = () => {
    try {
      onAdd(pictureAt(input.current.value));
    } catch (error) {
      setProblem(error.message);
    }
  };
  const press = (event) => {
    if (event.key === "Enter") {
      event.preventDefault();
      add();
    } else if (event.key === "Escape") {
      onClose();
    }
  };
  return html`<div class="address-row">
    <label for=${field}>Address of a picture</label>
    <div class="row">
      <input ref=${input} id=${field} type="url" placeholder="https://…" onKeyDown=${press} aria-invalid=${problem ? "true" : "false"} />
      <button type="button" class="button" onClick=${add}>Add</button>
    </div>
    <span class=${problem ? "bad" : "soft"} role=${problem ? "alert" : undefined}>${problem || "The server fetches it. This page does not load it."}</span>
  </div>`;
}

/** @returns {Promise<string>} what went wrong; empty if nothing did */
async function addFiles(session, chats, files) {
  const most = session.model?.metadata?.max_image_bytes ?? USUAL_MOST_BYTES;
  for (const file of files) {
    try {
      const picture = await readPicture(file, most);
      chats.setDraft({ pictures: [...chats.draft.pictures, picture] });
      announce(`${picture.name} is added.`);
    } catch (error) {
      return error instanceof PictureError ? error.message : "The picture cannot be read.";
    }
  }
  return "";
}

/** Pictures may be dropped anywhere on the page. */
function useDrops(setDropping, add) {
  const latest = useRef(add);
  latest.current = add;
  useEffect(() => {
    const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
    const over = (event) => {
      if (hasFiles(event)) {
        event.preventDefault();
        setDropping(true);
      }
    };
    const leave = (event) => event.relatedTarget === null && setDropping(false);
    const drop = (event) => {
      if (hasFiles(event)) {
        event.preventDefault();
        setDropping(false);
        latest.current(picturesIn(event.dataTransfer));
      }
    };
    addEventListener("dragover", over);
    addEventListener("dragleave", leave);
    addEventListener("drop", drop);
    return () => {
      removeEventListener("dragover", over);
      removeEventListener("dragleave", leave);
      removeEventListener("drop", drop);
    };
  }, []);
}

function grow(area) {
  area.style.setProperty("height", "auto");
  area.style.setProperty("height", `${Math.min(area.scrollHeight, 240)}px`);
}
