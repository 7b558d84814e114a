// One picture, large, with its code beside the query's.

import { picture, thumbnail } from "./api.js";
import { bitsOf, differing, draw } from "./bits.js";
import { $, make, isTiny, plural } from "./elements.js";

export class Viewer {
  constructor({ onSearch, onClose }) {
    this.dialog = $("viewer");
    this.items = [];
    this.place = 0;
    $("viewer-close").addEventListener("click", () => this.dialog.close());
    $("viewer-previous").addEventListener("click", () => this.step(-1));
    $("viewer-next").addEventListener("click", () => this.step(1));
    $("viewer-search").addEventListener("click", () => {
      this.dialog.close();
      onSearch(this.items[this.place].id);
    });
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.dialog.close());
    this.dialog.addEventListener("close", () => {
      $("viewer-picture").replaceChildren();
      onClose(this.place);
    });
    this.dialog.addEventListener("keydown", (event) => {
      if (event.key === "ArrowRight") this.step(1);
      else if (event.key === "ArrowLeft") this.step(-1);
      else if (event.key === " " && !event.target.closest("a")) this.dialog.close();
      else return;
      event.preventDefault();
    });
  }

  // `query`: bits of the query, or null.
  open(items, place, query) {
    Object.assign(this, { items, place, query });
    this.fill();
    this.dialog.showModal();
    $("viewer-close").focus();
  }

  step(by) {
    const to = this.place + by;
    if (to < 0 || to >= this.items.length) return;
    this.place = to;
    this.fill();
  }

  fill() {
    const item = this.items[this.place];
    const nBits = this.query ? this.query.length : item.code.length * 4;
    const bits = bitsOf(item.code, nBits);
    $("viewer-picture").replaceChildren(this.large(item, bits));
    $("viewer-name").textContent = item.name;
    const size = item.width ? `${item.width} × ${item.height}, ` : "";
    $("viewer-facts").textContent = `${size}id ${item.id}`;
    const rows = [[{ bits }, "this picture's code"]];
    if (this.query && item.distance !== undefined) {
      rows.unshift([{ bits: this.query }, "the query's code"]);
      rows.push([{ bits: differing(bits, this.query), kind: "differs" }, `${plural(item.distance, "bit")} of ${nBits} differ`]);
    }
    $("viewer-codes").replaceChildren(...rows.map(([pattern, words]) => {
      const canvas = make("canvas", { "aria-hidden": "true" });
      draw(canvas, [pattern], 84);
      return make("div", {}, canvas, make("span", {}, words));
    }));
    $("viewer-open").href = picture(item.id);
    $("viewer-open").hidden = !item.picture;
    $("viewer-search").hidden = item.id === null;
    $("viewer-previous").disabled = this.place === 0;
    $("viewer-next").disabled = this.place === this.items.length - 1;
  }

  large(item, bits) {
    if (item.url || item.picture) {
      // The thumbnail is there already; the picture itself takes its place when it has come.
      const image = make("img", { src: item.url || thumbnail(item.id), alt: item.name, class: isTiny(item) ? "tiny" : null });
      // Small pictures are enlarged, but not into a blur.
      const fit = () => { image.style.maxWidth = image.style.maxHeight = `${(isTiny(item) ? 40 : 3) * Math.max(image.naturalWidth, image.naturalHeight)}px`; };
      image.addEventListener("load", fit);
      if (!item.url) {
        const full = new Image();
        full.onload = () => { image.src = full.src; };
        full.src = picture(item.id);
      }
      return image;
    }
    const canvas = make("canvas", { role: "img", "aria-label": `the code of ${item.name}` });
    draw(canvas, [{ bits }], 360);
    return canvas;
  }
}
