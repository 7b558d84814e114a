// The radius slider under a histogram of distances.

import { $, svg, plural, count } from "./elements.js";

const ENOUGH = 40; // pictures the radius takes in before anyone has moved it

export class Radius {
  constructor(onChange) {
    this.input = $("radius");
    this.onChange = onChange;
    this.chosen = null; // by the user; kept from search to search
    this.distances = [];
    this.input.addEventListener("input", () => {
      this.chosen = Number(this.input.value);
      this.update();
    });
  }

  get value() {
    return Number(this.input.value);
  }

  // Sorted distances of all results; `total` items are in the index.
  set(distances, nBits, total) {
    this.distances = distances;
    this.total = total;
    const farthest = distances.length ? distances[distances.length - 1] : nBits;
    const high = Math.max(farthest, 1);
    this.input.max = high;
    const enough = distances[Math.min(ENOUGH, distances.length) - 1] ?? high;
    this.input.value = this.chosen === null ? enough : Math.min(this.chosen, high);
    $("radius-high").textContent = `${plural(high, "bit")} away`;
    this.drawHistogram(high);
    this.update();
  }

  // How many of the results lie within the radius.
  within() {
    let low = 0;
    for (let high = this.distances.length; low < high; ) {
      const middle = (low + high) >> 1;
      if (this.distances[middle] <= this.value) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  step(by) {
    this.input.value = this.value + by;
    this.chosen = this.value;
    this.update();
  }

  choose(value) {
    this.input.value = value;
    this.chosen = this.value;
    this.update();
  }

  update() {
    const n = this.within();
    const share = `${(100 * this.value) / Number(this.input.max)}%`;
    this.input.style.setProperty("--filled", share);
    this.input.setAttribute("aria-valuetext", `${plural(this.value, "bit")}, ${plural(n, "picture")}`);
    $("radius-value").textContent = plural(this.value, "bit");
    $("radius-count").textContent = `${count(n)} of ${count(this.total)}`;
    this.clip?.setAttribute("width", this.value + 0.5 + 0.5);
    this.onChange(n);
  }

  drawHistogram(high) {
    const counts = new Array(high + 1).fill(0);
    for (const distance of this.distances) counts[distance]++;
    const most = Math.max(...counts, 1);
    // Square roots: the few near ones stay visible beside the many far ones.
    const path = counts.map((n, d) => `M${d - 0.42} 1V${1 - Math.sqrt(n / most)}h.84V1z`).join("");
    const host = $("histogram");
    host.setAttribute("viewBox", `0 0 ${high} 1`);
    this.clip = svg("rect", { x: -0.5, y: 0, width: 0, height: 1 });
    const clipped = svg("clipPath", { id: "chosen" });
    clipped.append(this.clip);
    host.replaceChildren(clipped, svg("path", { class: "all", d: path }), svg("path", { class: "chosen", d: path, "clip-path": "url(#chosen)" }));
  }
}
