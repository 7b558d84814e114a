// The view of near-duplicate groups.

import * as api from "./api.js";
import { bitsOf, differing, draw } from "./bits.js";
import { $, count, make, plural } from "./elements.js";
import { aspect, pictureOf } from "./grid.js";

const AT_ONCE = 30;
const MOST_SHOWN = 24;

export class Groups {
  constructor() {
    this.radius = null;
    this.offset = 0;
    this.total = Infinity;
    this.loading = null;
    this.input = $("group-radius");
    this.input.addEventListener("input", () => {
      $("group-radius-value").textContent = plural(Number(this.input.value), "bit");
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.open(Number(this.input.value)), 120);
    });
    new IntersectionObserver((entries) => entries[0].isIntersecting && this.more(), { rootMargin: "600px" }).observe($("groups-end"));
  }

  async open(radius = this.radius) {
    this.loading?.abort();
    this.loading = null;
    this.radius = radius;
    this.offset = 0;
    this.total = Infinity;
    this.isFresh = true;
    await this.more();
  }

  async more() {
    if (this.loading || this.offset >= this.total || $("duplicates-view").hidden) return;
    const loading = (this.loading = new AbortController());
    try {
      const page = await api.duplicates(this.radius, this.offset, AT_ONCE, loading.signal);
      if (this.isFresh) $("groups").replaceChildren();
      this.isFresh = false;
      this.describe(page);
      page.groups.forEach((group, i) => $("groups").append(this.group(group, this.offset + i + 1)));
      this.offset += AT_ONCE;
      this.total = page.n_groups;
    } catch (error) {
      if (error.name === "AbortError") return;
      this.total = 0;
      $("duplicates-lead").textContent = "";
      $("duplicates-radius").hidden = true;
      $("groups").replaceChildren(make("div", { class: "banner", role: "alert" }, make("strong", {}, "The groups cannot be shown"), make("span", {}, error.message)));
    } finally {
      if (this.loading === loading) this.loading = null;
    }
  }

  describe(page) {
    const groups = plural(page.n_groups, "group");
    const missing = page.n_missing ? ` ${plural(page.n_missing, "picture")} of the file ${page.n_missing === 1 ? "is" : "are"} not in this index.` : "";
    const expected = typeof page.expected_false_pairs === "number" ? ` About ${count(Math.round(page.expected_false_pairs))} false pairs are expected among all pictures.` : "";
    const lead = page.n_groups
      ? `${groups}. Every picture of a group lies within ${plural(page.radius, "bit")} of the first, the one to keep.`
      : `No two pictures lie within ${plural(page.radius, "bit")} of each other.`;
    $("duplicates-lead").textContent = lead + expected + missing;
    $("duplicates-radius").hidden = page.from_file;
    if (this.radius === null) {
      this.input.max = Math.max(4, page.radius * 4);
      this.input.value = page.radius;
    }
    this.input.style.setProperty("--filled", `${(100 * Number(this.input.value)) / Number(this.input.max)}%`);
    $("group-radius-value").textContent = plural(Number(this.input.value), "bit");
  }

  group(members, number) {
    const keeper = bitsOf(members[0].code, members[0].code.length * 4);
    const row = make("div", { class: "members" });
    const add = (from, to) => members.slice(from, to).forEach((item, i) => row.append(this.member(item, keeper, from + i === 0)));
    add(0, MOST_SHOWN);
    if (members.length > MOST_SHOWN) {
      const more = make("button", { class: "button more", type: "button" }, `${count(members.length - MOST_SHOWN)} more`);
      more.addEventListener("click", () => {
        more.remove();
        add(MOST_SHOWN, members.length);
      });
      row.append(more);
    }
    return make("article", { class: "group" }, make("h2", {}, `Group ${number}`, make("span", {}, plural(members.length, "picture"))), row);
  }

  member(item, keeper, isKeeper) {
    const frame = make("span", { class: "frame" }, pictureOf(item, { alt: item.name }));
    const height = matchMedia("(max-width: 820px)").matches ? 112 : 148;
    frame.style.width = `${Math.max(64, aspect(item) * height)}px`;
    const words = isKeeper ? "kept" : `${item.distance} bits from the one to keep`;
    const caption = make("span", { class: "caption" });
    if (isKeeper) caption.append(make("span", { class: "keep" }, "keep"));
    else {
      const canvas = make("canvas", { "aria-hidden": "true" });
      draw(canvas, [{ bits: differing(bitsOf(item.code, keeper.length), keeper), kind: "differs" }], 24);
      caption.append(make("b", {}, String(item.distance)), item.distance === 1 ? "bit" : "bits", canvas);
    }
    return make("a", { class: `member${isKeeper ? " keeper" : ""}`, href: `#/item/${item.id}`, title: item.name, "aria-label": `${item.name}, ${words}. Search with it.` }, frame, caption);
  }
}
