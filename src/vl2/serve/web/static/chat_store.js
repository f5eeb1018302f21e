// The chats that the browser keeps, in IndexedDB: one record for each, and its pictures apart from it, as files.

import { say } from "./i18n.js";

const NAME = "vl2";
const VERSION = 1;
export const MAX_CHATS = 200;

/** Its message is a sentence for people. */
export class StoreError extends Error {}

export class ChatStore {
  /** Open the store. Throw StoreError where the browser has none for this page, as some do in private windows. */
  static async open() {
    try {
      const request = indexedDB.open(NAME, VERSION);
      request.onupgradeneeded = () => {
        request.result.createObjectStore("chats", { keyPath: "id" });
        request.result.createObjectStore("pictures", { keyPath: ["chat", "id"] });
      };
      return new ChatStore(await resultOf(request));
    } catch {
      throw new StoreError(say("storeDenied"));
    }
  }

  constructor(database) {
    this.database = database;
    this.saved = new Set(); // pictures that are in the store, as "chat id"
    this.saving = Promise.resolve();
  }

  /** Return the records of all chats, the newest first, without pictures. */
  async list() {
    const records = await resultOf(this.database.transaction("chats").objectStore("chats").getAll());
    return records.sort((one, other) => other.updated - one.updated);
  }

  /** Return a record and its pictures: {id, name, blob, width, height, mark}. Undefined if there is no such chat. */
  async load(id) {
    const within = this.database.transaction(["chats", "pictures"]);
    const [record, pictures] = await Promise.all([
      resultOf(within.objectStore("chats").get(id)),
      resultOf(within.objectStore("pictures").getAll(rangeOf(id))),
    ]);
    if (!record) return undefined;
    for (const picture of pictures) this.saved.add(`${id} ${picture.id}`);
    return { record, pictures };
  }

  /** Keep a chat as it is now. Throw StoreError, and change nothing, if there is no room for it. */
  save(conversation) {
    const record = structuredClone(conversation.toRecord());
    const pictures = conversation.pictures
      .filter((picture) => !this.saved.has(`${record.id} ${picture.id}`))
      .map(({ id, name, blob, width, height, mark }) => ({ chat: record.id, id, name, blob, width, height, mark }));
    const save = this.saving.then(() => this.write(record, pictures));
    this.saving = save.catch(() => {}); // one after another, so that the last state stays
    return save;
  }

  async write(record, pictures) {
    let isFull = false;
    try {
      const within = this.database.transaction(["chats", "pictures"], "readwrite");
      const chats = within.objectStore("chats");
      const done = endOf(within);
      const [known, count] = await Promise.all([resultOf(chats.getKey(record.id)), resultOf(chats.count())]);
      isFull = known === undefined && count >= MAX_CHATS;
      if (isFull) {
        within.abort();
      } else {
        for (const picture of pictures) within.objectStore("pictures").put(picture);
        chats.put(record);
      }
      await done;
    } catch (error) {
      if (isFull) throw new StoreError(say("storeMany", MAX_CHATS));
      throw new StoreError(say(error?.name === "QuotaExceededError" ? "storeFull" : "storeFailed"));
    }
    for (const { id } of pictures) this.saved.add(`${record.id} ${id}`);
  }

  /** Change the title of a kept chat. */
  async rename(id, title) {
    const within = this.database.transaction("chats", "readwrite");
    const done = endOf(within);
    const chats = within.objectStore("chats");
    const record = await resultOf(chats.get(id));
    if (record) chats.put({ ...record, title });
    await done;
  }

  /** Delete a chat with its pictures. */
  async remove(id) {
    await this.saving; // a save that is under way would bring it back
    const within = this.database.transaction(["chats", "pictures"], "readwrite");
    within.objectStore("chats").delete(id);
    within.objectStore("pictures").delete(rangeOf(id));
    await endOf(within);
  }

  /** Return how many bytes the browser keeps for this page, or null where it does not say. */
  async usage() {
    try {
      return (await navigator.storage.estimate()).usage ?? null;
    } catch {
      return null; // the browser says it to pages with HTTPS only
    }
  }
}

const rangeOf = (chat) => IDBKeyRange.bound([chat], [chat, []]); // arrays come after all texts

function resultOf(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
    request.onblocked = () => reject(new Error("an older version of the page is open"));
  });
}

function endOf(transaction) {
  const end = new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onabort = () => reject(transaction.error);
  });
  end.catch(() => {}); // an error before this is awaited is not unhandled
  return end;
}
