// The page: which view is open, what is searched, and what the keys do.

import * as api from "./api.js";
import { bitsOf, draw, forgetColours } from "./bits.js";
import { $, count, isTiny, make, plural, say } from "./elements.js";
import { Grid } from "./grid.js";
import { Groups } from "./groups.js";
import { choose, takeIn, whyNot } from "./intake.js";
import { showQuality } from "./quality.js";
import { Radius } from "./radius.js";
import { Viewer } from "./viewer.js";

const FIRST = 100; // results that come first and are shown at once
const ALL = 10_000; // results that follow
const SKELETON_AFTER = 120; // milliseconds

let facts = null;
let query = null; // { key, code, bits, item, url, name, results }
let running = null;
let seed = Math.floor(Math.random() * 2 ** 31);
const uploads = new Map(); // code -> { url, name, answer }

const view = $("search-view");
const viewer = new Viewer({ onSearch: (id) => go(`#/item/${id}`), onClose: (place) => shownItems().length && grid.focus(Math.min(place, shownItems().length - 1)) });
const grid = new Grid($("grid"), { onLook: (place) => viewer.open(shownItems(), place, grid.query) });
const radius = new Radius((n) => {
  grid.limit(n);
  showNothing(n);
});
const groups = new Groups();

const shownItems = () => grid.items.slice(0, grid.shown);
const go = (hash) => { location.hash = hash; };

// ---- views ----

async function route() {
  if (!facts) return;
  const [, name = "", value = ""] = location.hash.split("/");
  const isSearch = !["duplicates", "quality"].includes(name);
  for (const link of document.querySelectorAll("nav a")) {
    const isHere = link.dataset.view === (isSearch ? "search" : name);
    if (isHere) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  view.hidden = !isSearch;
  $("duplicates-view").hidden = name !== "duplicates";
  $("quality-view").hidden = name !== "quality";
  document.title = { duplicates: "Near-duplicates – distillhash", quality: "Quality – distillhash" }[name] ?? "distillhash";
  scrollTo(0, 0);
  if (name === "duplicates") return groups.open();
  if (name === "quality") return showQuality();
  if (name === "item" && /^\d+$/.test(value)) return search({ key: `item/${value}`, id: Number(value) });
  if (name === "code" && /^[0-9a-f]+$/.test(value)) return search({ key: `code/${value}`, code: value });
  if (name === "words" && value) return search({ key: `words/${value}`, text: decodeURIComponent(value) });
  return start();
}

$("by").addEventListener("change", () => {
  api.rankBy($("by").value);
  for (const upload of uploads.values()) delete upload.answer;
  if (query) query.results = null;
  route();
});

async function start() {
  running?.abort();
  query = null;
  view.className = "is-start";
  hideMessages();
  if (grid.query || !grid.items.length) {
    grid.show([]);
    try {
      grid.show(await api.sample(60, seed));
    } catch (error) {
      fail(error);
    }
  }
}

// ---- searching ----

async function search(wanted) {
  if (query?.key === wanted.key && query.results) return;
  const known = uploads.get(wanted.code);
  const run = begin({ ...wanted, url: known?.url, name: known?.name ?? (wanted.text && `“${wanted.text}”`) });
  try {
    if (wanted.id !== undefined) {
      const [item, answer] = await Promise.all([api.item(wanted.id, run.signal), api.searchItem(wanted.id, FIRST, run.signal)]);
      query.item = item;
      query.name = item.name;
      show(answer);
      if (facts.n_items > FIRST) show(await api.searchItem(wanted.id, ALL, run.signal));
    } else if (wanted.text !== undefined) {
      show(await api.searchText(wanted.text, FIRST, run.signal));
      if (facts.n_items > FIRST) show(await api.searchText(wanted.text, ALL, run.signal));
    } else {
      show(known?.answer ?? (await api.searchCode(wanted.code, FIRST, run.signal)));
      if (facts.n_items > FIRST) show(await api.searchCode(wanted.code, ALL, run.signal));
    }
  } catch (error) {
    fail(error);
  } finally {
    end(run);
  }
}

async function searchFile(file) {
  if (!facts) await opened; // it came before they did
  if (!facts) return;
  if (facts.accepts !== "image") return refuse("This index keeps no model for pictures. Start from one of its items instead.");
  const reason = await whyNot(file, facts.max_upload);
  if (reason) return refuse(reason);
  if (location.hash.startsWith("#/duplicates") || location.hash.startsWith("#/quality")) {
    history.pushState(null, "", "#/");
    await route();
  }
  const url = URL.createObjectURL(file);
  const run = begin({ key: "upload", url, name: file.name || "pasted picture" });
  try {
    const answer = await api.searchFile(file, FIRST, run.signal);
    const { code } = answer.query;
    uploads.set(code, { url, name: query.name, answer });
    query.key = `code/${code}`;
    const hash = `#/code/${code}`;
    if (location.hash !== hash) history.pushState(null, "", hash);
    show(answer);
    if (facts.n_items > FIRST) show(await api.searchCode(code, ALL, run.signal));
  } catch (error) {
    fail(error);
  } finally {
    end(run);
  }
}

function begin(next) {
  running?.abort();
  running = new AbortController();
  query = next;
  view.className = "has-query is-busy";
  hideMessages();
  showQuery();
  scrollTo(0, 0);
  const run = running;
  setTimeout(() => {
    if (run === running && !query?.results && !run.signal.aborted && run.isOpen !== false) showSkeleton();
  }, SKELETON_AFTER);
  return run;
}

function end(run) {
  run.isOpen = false;
  if (run === running) view.classList.remove("is-busy");
}

function show(answer) {
  const isFirst = !query.results;
  query.code = answer.query.code;
  query.bits = bitsOf(answer.query.code, answer.n_bits);
  query.results = answer.results.filter((item) => item.id !== answer.query.id);
  $("nothing").hidden = true; // what was said since the search began stays: it may be of something dropped meanwhile
  if (isFirst) showQuery();
  const distances = query.results.map((item) => item.distance);
  if (facts.class_bits) { // a ranking, which is not by distance
    grid.show(query.results, { query: query.bits });
    if (isFirst) say(plural(query.results.length, "picture"));
    return;
  }
  // The grid takes the items before the slider says how many of them are seen.
  grid.items = query.results;
  grid.query = query.bits;
  radius.set(distances, answer.n_bits, answer.query.id === null ? facts.n_items : facts.n_items - 1);
  grid.show(query.results, { query: query.bits, shown: radius.within() });
  if (isFirst) say(`${plural(radius.within(), "picture")} within ${plural(radius.value, "bit")}`);
}

function showQuery() {
  const name = query.name ?? (query.code ? "a code" : "");
  const shown = $("query-picture");
  shown.replaceChildren();
  if (query.url || query.item?.picture) {
    const image = make("img", { src: query.url || api.thumbnail(query.item.id), alt: `The query: ${name}` });
    const tiny = () => image.naturalWidth <= 64 && image.naturalHeight <= 64 && image.classList.add("tiny");
    image.addEventListener("load", tiny);
    shown.append(image);
  } else if (query.code && query.bits) {
    const canvas = make("canvas", { role: "img", "aria-label": "The code of the query" });
    draw(canvas, [{ bits: query.bits }], 128);
    shown.append(canvas);
  }
  $("query-name").textContent = name;
  $("query-name").title = name;
  $("query-view").hidden = !query.url && !query.item;
  document.title = name ? `${name} – distillhash` : "distillhash";
  if (query.bits) {
    draw($("query-code"), [{ bits: query.bits }], 88);
    $("code-title").textContent = `${query.bits.length}-bit code`;
    $("code-hex").textContent = query.code;
  }
}

function viewQuery() {
  if (query.item) return viewer.open([query.item], 0, query.bits);
  viewer.open([{ id: null, name: query.name, url: query.url, code: query.code, picture: false }], 0, query.bits);
}

// ---- states ----

function showSkeleton() {
  grid.show([]);
  grid.host.style.height = "";
  const shapes = [1.5, 0.75, 1.33, 1.5, 0.67, 1.5, 1, 1.33, 1.78, 0.75, 1.5, 1.33, 0.8, 1.5];
  grid.host.replaceChildren(make("div", { class: "skeleton", "aria-hidden": "true" }, ...shapes.map((shape) => {
    const block = make("i");
    block.style.flexBasis = `${Math.round(170 * shape)}px`;
    return block;
  })));
}

function showNothing(n) {
  const nothing = $("nothing");
  const results = query?.results;
  nothing.hidden = !results || n > 0;
  if (nothing.hidden) return;
  if (!results.length) {
    nothing.replaceChildren(make("h2", {}, "There is nothing else in this index"), make("p", {}, "Add pictures with `distillhash index`."));
    return;
  }
  const nearest = results[0].distance;
  const button = make("button", { class: "button primary", type: "button", onclick: () => radius.choose(nearest) }, "Show it");
  nothing.replaceChildren(make("h2", {}, `No picture within ${plural(radius.value, "bit")}`), make("p", {}, `The nearest one is ${plural(nearest, "bit")} away.`), button);
}

function hideMessages() {
  $("banner").hidden = $("nothing").hidden = $("hero-error").hidden = true;
}

function message(element, title, detail) {
  element.replaceChildren(make("strong", {}, title), make("span", {}, detail));
  element.hidden = false;
}

function refuse(reason) {
  const isStart = view.classList.contains("is-start");
  if (view.hidden) go("#/");
  message(isStart || !query ? $("hero-error") : $("banner"), "That did not work", reason);
  scrollTo(0, 0);
}

function fail(error) {
  if (error.name === "AbortError") return;
  if (error.status === 401) return askForToken();
  if (query && !query.results) {
    grid.show([]);
    view.className = "has-query";
    message($("banner"), error.status === 404 ? "That picture is not in the index any more" : "The search did not work", error.message);
  } else {
    message(query ? $("banner") : $("hero-error"), "That did not work", error.message);
  }
  if (!(error instanceof api.Failure)) throw error;
}

function askForToken() {
  $("token-form").hidden = false;
  view.hidden = true;
  $("token").focus();
}

$("token-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    await api.signIn($("token").value);
    $("token-form").hidden = true;
    await open();
  } catch (error) {
    $("token-error").textContent = error.message;
  }
});

// ---- theme ----

const THEME = "distillhash-theme"; // other pages of this host keep theirs
const THEMES = {
  auto: ["Theme: as the system", "M10 3a7 7 0 1 0 0 14zM10 3a7 7 0 0 1 0 14"],
  light: ["Theme: light", "M10 6.5a3.5 3.5 0 1 0 0 7 3.5 3.5 0 0 0 0-7M10 1.8v1.6M10 16.6v1.6M1.8 10h1.6M16.6 10h1.6M4.2 4.2l1.1 1.1M14.7 14.7l1.1 1.1M15.8 4.2l-1.1 1.1M5.3 14.7l-1.1 1.1"],
  dark: ["Theme: dark", "M16.5 11.8A7 7 0 0 1 8.2 3.5a7 7 0 1 0 8.3 8.3z"],
};

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  const [words, path] = THEMES[theme];
  $("theme").innerHTML = `<svg viewBox="0 0 20 20" aria-hidden="true"><path d="${path}"/></svg>`;
  $("theme").setAttribute("aria-label", words);
  $("theme").title = words;
  repaint();
}

function repaint() {
  forgetColours();
  grid.clear();
  grid.relayout();
  if (query?.bits) showQuery();
  if (facts && !$("quality-view").hidden) showQuality();
  if (facts && !$("duplicates-view").hidden) groups.open();
}

$("theme").addEventListener("click", () => {
  const names = Object.keys(THEMES);
  const next = names[(names.indexOf(document.documentElement.dataset.theme) + 1) % names.length];
  localStorage.setItem(THEME, next);
  setTheme(next);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);

// ---- keys and buttons ----

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (event.target.closest("input:not([type=range])")) return;
  const keys = {
    "[": () => query?.results && !facts.class_bits && radius.step(-1),
    "]": () => query?.results && !facts.class_bits && radius.step(1),
    o: choose,
    "?": () => $("keys").showModal(),
    Escape: () => query && go("#/"),
  };
  if (event.key in keys) {
    event.preventDefault();
    keys[event.key]();
  } else if (event.key === "ArrowDown" && event.target === document.body && shownItems().length) {
    event.preventDefault();
    grid.focus(grid.focused);
  }
});

$("drop").addEventListener("click", choose);
$("words-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const words = $("words").value.trim();
  if (words) go(`#/words/${encodeURIComponent(words)}`);
});
$("shuffle").addEventListener("click", async () => {
  seed = (seed + 1) % 2 ** 31;
  grid.show(await api.sample(60, seed).catch((error) => fail(error) ?? []));
});
$("query-new").addEventListener("click", () => go("#/"));
$("query-view").addEventListener("click", viewQuery);
$("query-picture").addEventListener("click", () => (query.url || query.item) && viewQuery());
$("help").addEventListener("click", () => $("keys").showModal());
$("code-hex").addEventListener("click", async () => {
  await navigator.clipboard?.writeText(query.code);
  say("The code is copied");
});
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address says what is searched
  $("stage").focus();
});
takeIn(searchFile, refuse);

// ---- opening ----

async function open() {
  try {
    if (!(await api.access()).allowed) return askForToken();
    facts = await api.statistics();
  } catch (error) {
    view.hidden = false;
    view.className = "is-start";
    return message($("hero-error"), "The server does not answer", error.message);
  }
  const word = facts.accepts === "embedding" ? "item" : "image";
  $("facts").textContent = `${plural(facts.n_items, word)} · ${facts.n_bits} bits${facts.method ? ` · ${facts.method}` : ""}`;
  if (facts.accepts !== "image") $("drop").hidden = true;
  $("words-form").hidden = !facts.accepts_text;
  $("ranking").hidden = !facts.class_bits;
  $("radius-box").hidden = facts.class_bits > 0;
  if (!facts.n_items) {
    $("hero-heading").textContent = "This index is empty; add pictures with `distillhash index`";
    $("shuffle").hidden = true;
  }
  if (!facts.ready) {
    $("drop-note").textContent = "The model is being loaded …";
    setTimeout(open, 700);
  } else {
    $("drop-note").textContent = "It is compared by its code and not kept.";
  }
  if (!open.isDone) {
    open.isDone = true;
    addEventListener("hashchange", route);
    await route();
  }
}

setTheme(Object.hasOwn(THEMES, localStorage.getItem(THEME)) ? localStorage.getItem(THEME) : "auto");
const opened = open();
