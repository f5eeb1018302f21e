// The list of kept chats beside the page: search, open, rename, delete, and files.

import { readJsonFile, toJsonFile, toMarkdown, withNewId } from "./chat_files.js";
import { ChatStore } from "./chat_store.js";
import { Conversation } from "./conversation.js";
import { byId, make, save, toast } from "./dom.js";
import { currentLanguage, say } from "./i18n.js";
import { restorePicture } from "./pictures.js";
import { keepChoice, keepInTab, readChoice, readInTab } from "./stored.js";

const WIDE = window.matchMedia("(min-width: 75rem)"); // as in style.css: beside the page, otherwise over it
const OPEN_CHAT = "vl2.chat"; // the chat of this tab, for a reload
const SNIPPET = 40; // characters on each side of what was found

export class ChatList {
  /** `open(conversation)` shows a chat; `renamed(id, title)` and `removed(id)` tell what was done to one. */
  constructor({ open, renamed, removed }) {
    Object.assign(this, { open, renamed, removed });
    this.store = null;
    this.records = [];
    this.current = null; // the id of the chat that is shown
    this.deleted = new Set(); // ids; an answer that comes to an end later would bring its chat back
    this.expanded = null; // the id of the chat whose actions are shown
    this.list = byId("chat-list");
    this.connect();
  }

  /** Open the store and show its chats, and the chat that this tab had before it was loaded again. */
  async start() {
    try {
      this.store = await ChatStore.open();
    } catch (error) {
      this.warn(error.message);
      return;
    }
    await this.refresh();
    const before = readInTab(OPEN_CHAT);
    if (before && !this.current && !byId("question").value) await this.openChat(before);
  }

  connect() {
    byId("toggle-chats").addEventListener("click", () => this.toggle());
    byId("close-chats").addEventListener("click", () => this.toggle(false));
    byId("chats-backdrop").addEventListener("click", () => this.toggle(false));
    byId("chat-search").addEventListener("input", () => this.show());
    byId("import-chats").addEventListener("click", () => byId("chat-file").click());
    byId("chat-file").addEventListener("change", async (event) => {
      const files = [...event.target.files];
      event.target.value = "";
      await this.import(files);
    });
    byId("export-chats").addEventListener("click", () => this.exportJson(this.records.map(({ id }) => id), "vl2-chats"));
    byId("chats").addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || WIDE.matches || event.defaultPrevented) return;
      event.stopPropagation(); // Escape would stop an answer, too
      this.toggle(false);
    });
    // Another tab may have changed the chats.
    document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && this.refresh());
    const place = () => this.place(WIDE.matches && readChoice("vl2.chats") !== "closed");
    WIDE.addEventListener("change", place);
    place();
  }

  toggle(isOpen = byId("chats").hidden) {
    if (WIDE.matches) keepChoice("vl2.chats", isOpen ? "open" : "closed");
    this.place(isOpen);
    byId(isOpen ? "chat-search" : "toggle-chats").focus();
  }

  place(isOpen) {
    const isOver = isOpen && !WIDE.matches;
    byId("chats").hidden = !isOpen;
    byId("chats-backdrop").hidden = !isOver;
    byId("toggle-chats").setAttribute("aria-expanded", String(isOpen));
    for (const element of [document.querySelector(".bar"), byId("center")]) element.inert = isOver;
  }

  warn(message) {
    byId("chats-warning").textContent = message;
    byId("chats-warning").hidden = message === "";
  }

  async refresh() {
    if (!this.store) return;
    try {
      this.records = await this.store.list();
    } catch {
      this.warn(say("storeFailed"));
      return;
    }
    if (!this.list.querySelector(".is-asking")) this.show(); // a title that is being typed stays
    const bytes = await this.store.usage();
    const count = this.records.length;
    byId("chats-usage").textContent = bytes === null || count === 0 ? "" : say("chatsUsage", count, size(bytes));
  }

  /** Keep a chat as it is now, and say so where that fails. */
  async keep(conversation) {
    if (!this.store || this.deleted.has(conversation.id)) return;
    try {
      await this.store.save(conversation);
      this.warn("");
    } catch (error) {
      this.warn(error.message);
      if (byId("chats").hidden) toast(error.message);
    }
    await this.refresh();
  }

  /** Mark the chat that is shown; null for one that is new. */
  select(id) {
    if (this.current === id) return;
    this.current = id;
    keepInTab(OPEN_CHAT, id ?? "");
    this.show();
  }

  show() {
    const words = byId("chat-search").value.trim().toLowerCase();
    const found = this.records.map((record) => ({ record, snippet: find(record, words) })).filter(({ snippet }) => snippet !== null);
    byId("export-chats").disabled = this.records.length === 0;
    byId("chats-empty").hidden = found.length > 0 || this.store === null;
    byId("chats-empty").textContent = say(this.records.length ? "chatsNone" : "chatsEmpty");
    this.list.replaceChildren(...found.map(({ record, snippet }) => this.row(record, snippet)));
  }

  row(record, snippet) {
    const { id, title } = record;
    const isCurrent = id === this.current;
    const open = make(
      "button",
      { type: "button", className: "chat-open", title, attributes: isCurrent ? { "aria-current": "true" } : {} },
      make("span", { className: "chat-title", textContent: title || say("unnamed") }),
      make("span", { className: "chat-date", textContent: snippet || dateOf(record.updated) }),
    );
    open.addEventListener("click", () => this.openChat(id));
    const isExpanded = this.expanded === id;
    const more = make("button", {
      type: "button",
      className: "ghost icon chat-more",
      textContent: "⋯",
      title: say("chatMore", title),
      attributes: { "aria-label": say("chatMore", title), "aria-expanded": String(isExpanded) },
    });
    more.addEventListener("click", () => {
      this.expanded = isExpanded ? null : id;
      this.show();
      this.focusOn(id, ".chat-more");
    });
    const row = make("li", { className: "chat", dataset: { chat: id } }, open, more);
    row.classList.toggle("is-current", isCurrent);
    if (isExpanded) row.append(this.actions(record));
    return row;
  }

  actions({ id, title }) {
    const place = make("div", { className: "chat-actions" });
    const action = (words, run, className = "") => {
      const button = make("button", { type: "button", className: `ghost small ${className}`.trim(), textContent: say(words) });
      button.addEventListener("click", run);
      return button;
    };
    const showAll = () => {
      place.classList.remove("is-asking");
      place.replaceChildren(
        action("rename", rename),
        action("exportMarkdown", () => this.exportMarkdown(id)),
        action("exportJson", () => this.exportJson([id], title)),
        action("delete", confirm, "danger"),
      );
    };
    const back = (event) => {
      event.preventDefault();
      showAll();
      place.querySelector("button").focus();
    };
    const rename = () => {
      const field = make("input", { value: title, maxLength: 200, attributes: { "aria-label": say("chatTitle") } });
      const form = make("form", { className: "chat-rename" }, field, make("button", { className: "ghost small", textContent: say("save") }));
      form.addEventListener("submit", async (event) => {
        event.preventDefault();
        showAll();
        await this.rename(id, field.value.trim() || title);
      });
      field.addEventListener("keydown", (event) => event.key === "Escape" && back(event));
      place.classList.add("is-asking");
      place.replaceChildren(form);
      field.select();
    };
    const confirm = () => {
      place.classList.add("is-asking");
      const cancel = action("cancel", back);
      place.replaceChildren(
        make("span", { textContent: say("deleteAsk") }),
        action("delete", () => {
          showAll();
          this.remove(id);
        }, "danger"),
        cancel,
      );
      cancel.focus();
    };
    showAll();
    return place;
  }

  focusOn(id, selector) {
    this.list.querySelector(`[data-chat="${CSS.escape(id)}"] ${selector}`)?.focus();
  }

  async openChat(id) {
    if (!WIDE.matches) this.place(false);
    if (id === this.current) return; // it is shown, and its answer may be coming
    const found = await this.load(id);
    if (!found) {
      await this.refresh(); // another tab has deleted it
      return;
    }
    this.select(id);
    this.open(Conversation.fromRecord(found.record, found.pictures.map(restorePicture)));
  }

  /** A chat as it is kept, or an error that it cannot be read. */
  async load(id) {
    try {
      return await this.store.load(id);
    } catch {
      toast(say("storeFailed"));
      return undefined;
    }
  }

  async rename(id, title) {
    await this.attempt(() => this.store.rename(id, title));
    this.renamed(id, title);
    this.expanded = null;
    await this.refresh();
    this.focusOn(id, ".chat-more");
  }

  async remove(id) {
    this.deleted.add(id);
    this.removed(id);
    await this.attempt(() => this.store.remove(id));
    await this.refresh();
    byId("chat-search").focus();
  }

  async attempt(change) {
    try {
      await change();
    } catch {
      this.warn(say("storeFailed"));
    }
  }

  async exportJson(ids, name) {
    save(await toJsonFile(ids, (id) => this.store.load(id)), `${fileName(name)}.json`);
  }

  async exportMarkdown(id) {
    const { record, pictures } = await this.store.load(id);
    const text = toMarkdown(Conversation.fromRecord(record, pictures));
    save(new Blob([text], { type: "text/markdown" }), `${fileName(record.title)}.md`);
  }

  /** Keep the chats of files. One that is here already, unchanged, is left out. */
  async import(files) {
    let count = 0;
    try {
      for (const file of files) {
        for (const read of await readJsonFile(file)) {
          const known = this.records.find(({ id }) => id === read.record.id);
          if (known?.updated === read.record.updated) continue;
          const { record, pictures } = known ? withNewId(read) : read;
          await this.store.save(Conversation.fromRecord(record, pictures));
          count += 1;
        }
      }
      this.warn("");
      toast(say("imported", count));
    } catch (error) {
      this.warn(error.message);
    }
    await this.refresh();
  }
}

const TAGS = /<\|[^|<>]{0,20}\|>|\[\[[\d\s,[\]]*\]\]/g; // of boxes

/** Return the words around what was searched for, "" where the title has them or nothing was, and null where none are. */
function find({ title, turns }, words) {
  if (!words || title.toLowerCase().includes(words)) return "";
  for (const { shown, answer } of turns) {
    for (const text of [shown, (answer.markdown ?? answer.text).replace(TAGS, "")]) {
      const at = text.toLowerCase().indexOf(words);
      if (at >= 0) return `…${text.slice(Math.max(0, at - SNIPPET / 4), at + words.length + SNIPPET).replace(/\s+/g, " ")}…`;
    }
  }
  return null;
}

const fileName = (title) => title.replace(/[^\p{L}\p{N} _-]+/gu, "").trim().slice(0, 60) || "chat";

const size = (bytes) => (bytes < 2 ** 20 ? `${Math.ceil(bytes / 1024)} kB` : `${(bytes / 2 ** 20).toFixed(1)} MB`);

function dateOf(time) {
  const isToday = new Date(time).toDateString() === new Date().toDateString();
  const style = isToday ? { timeStyle: "short" } : { dateStyle: "medium" };
  return new Intl.DateTimeFormat(currentLanguage() === "zh" ? "zh-CN" : "en", style).format(time);
}
