// The page of plots: how the bits of the index behave.

import * as api from "./api.js";
import { palette } from "./bits.js";
import { $, count, make, svg } from "./elements.js";

const WIDTH = 520;
const HEIGHT = 220;
const LEFT = 40;
const BOTTOM = 34;

export async function showQuality() {
  let found;
  try {
    found = await api.quality();
  } catch (error) {
    $("quality-lead").textContent = error.message;
    return;
  }
  const sampled = found.n_sampled < found.n_items ? `a random ${count(found.n_sampled)} of the ${count(found.n_items)} items` : `all ${count(found.n_items)} items`;
  $("quality-lead").textContent = `Measured on ${sampled}, without labels. Good bits are even, independent of each other, and keep different pictures apart.`;
  const tiles = [
    [`${found.effective_bits.toFixed(1)} of ${found.n_bits}`, "bits' worth of independent information"],
    [`${(100 * found.unique_fraction).toFixed(1)}%`, "of the items have distinct codes"],
    [`${(100 * found.largest_bucket_fraction).toFixed(2)}%`, "of the items share the commonest code"],
    [mean(found.nearest_distances).toFixed(1), "bits to the nearest other item, on average"],
    [mean(found.pair_distances).toFixed(1), `bits between two random items; ${found.n_bits / 2} is ideal`],
  ];
  $("quality-tiles").replaceChildren(...tiles.map(([value, words]) => make("div", {}, make("dt", {}, words), make("dd", {}, value))));
  $("quality-figures").replaceChildren(
    figure("Distances", "Pairs of random items, and every item to its nearest other. A radius between the two humps separates near from unrelated.", distances(found)),
    figure("What a radius brings", "Pictures within a radius of a picture, on average. Where the curve begins to climb, unrelated ones come in.", reach(found)),
    figure("Balance of the bits", "Share of ones minus share of zeros. 0 is best; −1 or +1 is a bit that says nothing.", balance(found)),
    figure("Correlation of the bits", "Between every two bits. The paler off the diagonal, the less they repeat each other.", ...correlation(found)),
  );
}

function mean(counts) {
  const total = counts.reduce((sum, n) => sum + n, 0);
  return total ? counts.reduce((sum, n, d) => sum + n * d, 0) / total : 0;
}

function figure(title, words, ...content) {
  return make("figure", {}, make("h2", {}, title), make("figcaption", {}, words), ...content);
}

function axes(plot, { xs, ys, x, y, xTitle }) {
  for (const [value, label] of ys) {
    plot.append(svg("line", { class: "axis", x1: LEFT, x2: WIDTH, y1: y(value), y2: y(value) }), text(LEFT - 8, y(value) + 4, label, "end"));
  }
  for (const [value, label] of xs) plot.append(text(x(value), HEIGHT - BOTTOM + 16, label, "middle"));
  plot.append(text((LEFT + WIDTH) / 2, HEIGHT - 2, xTitle, "middle"));
}

function text(x, y, words, anchor, kind = "") {
  const element = svg("text", { x, y, "text-anchor": anchor, class: kind });
  element.textContent = words;
  return element;
}

function ticks(last) {
  const step = Math.max(1, Math.round(last / 4));
  return [0, 1, 2, 3, 4].map((i) => i * step).filter((value) => value <= last).map((value) => [value, String(value)]);
}

function percent(share) {
  return `${(100 * share).toFixed(share < 0.1 ? 1 : 0)}%`;
}

function distances({ pair_distances: pairs, nearest_distances: nearest, n_bits: nBits }) {
  const x = (d) => LEFT + ((d + 0.5) / (nBits + 1)) * (WIDTH - LEFT);
  const share = (counts) => {
    const total = counts.reduce((sum, n) => sum + n, 0) || 1;
    return counts.map((n) => n / total);
  };
  const series = [["first", share(pairs), "random pairs"], ["second", share(nearest), "nearest other"]];
  const most = Math.max(...series.flatMap(([, shares]) => shares));
  const y = (value) => HEIGHT - BOTTOM - (value / most) * (HEIGHT - BOTTOM - 24);
  const plot = svg("svg", { class: "plot", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `Distances: random pairs ${mean(pairs).toFixed(1)} bits apart on average, nearest others ${mean(nearest).toFixed(1)}` });
  axes(plot, { xs: ticks(nBits), ys: [[0, "0"], [most / 2, percent(most / 2)], [most, percent(most)]], x, y, xTitle: "distance in bits" });
  const width = ((WIDTH - LEFT) / (nBits + 1)) * 0.86;
  for (const [kind, shares, words] of series) {
    shares.forEach((value, d) => {
      if (!value) return;
      const bar = svg("rect", { class: kind, x: x(d) - width / 2, y: y(value), width, height: HEIGHT - BOTTOM - y(value), rx: Math.min(2, width / 3), opacity: 0.82 });
      const title = svg("title");
      title.textContent = `${words}, ${d} bits: ${(100 * value).toFixed(1)}%`;
      bar.append(title);
      plot.append(bar);
    });
    const peak = shares.indexOf(Math.max(...shares));
    const isFirst = x(peak) < LEFT + 44; // the label would run into the axis
    plot.append(text(isFirst ? LEFT + 4 : x(peak), y(shares[peak]) - 7, words, isFirst ? "start" : "middle", "label"));
  }
  return plot;
}

function reach({ pair_distances: pairs, n_bits: nBits, n_items: n }) {
  const total = pairs.reduce((sum, count) => sum + count, 0) || 1;
  let sum = 0;
  const within = pairs.map((count) => ((sum += count) / total) * (n - 1));
  const decades = Math.max(1, Math.ceil(Math.log10(n)));
  const x = (d) => LEFT + ((d + 0.5) / (nBits + 1)) * (WIDTH - LEFT);
  const y = (value) => HEIGHT - BOTTOM - ((Math.log10(value) + 1) / (decades + 1)) * (HEIGHT - BOTTOM - 12);
  const plot = svg("svg", { class: "plot", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `Pictures within a radius: ${within[Math.round(nBits / 4)].toFixed(1)} within ${Math.round(nBits / 4)} bits` });
  const ys = [[0.1, "0.1"]];
  for (let i = 0; i <= decades; i++) ys.push([10 ** i, count(10 ** i)]);
  axes(plot, { xs: ticks(nBits), ys, x, y, xTitle: "radius in bits" });
  const points = within.map((value, d) => [d, value]).filter(([, value]) => value >= 0.1);
  plot.append(svg("path", { class: "curve", d: points.map(([d, value], i) => `${i ? "L" : "M"}${x(d)} ${y(value)}`).join("") }));
  for (const [d, value] of points) {
    const dot = svg("circle", { class: "dot", cx: x(d), cy: y(value), r: Math.min(3, 100 / nBits) });
    const title = svg("title");
    title.textContent = `within ${d} bits: ${value < 10 ? value.toFixed(1) : count(Math.round(value))}`;
    dot.append(title);
    plot.append(dot);
  }
  return plot;
}

function balance({ balance: values, n_bits: nBits }) {
  const largest = Math.max(0.1, ...values.map(Math.abs));
  const most = Math.min(1, Math.ceil(largest * 10) / 10);
  const x = (bit) => LEFT + ((bit + 0.5) / nBits) * (WIDTH - LEFT);
  const y = (value) => (HEIGHT - BOTTOM) / 2 + 6 - (value / most) * ((HEIGHT - BOTTOM) / 2 - 10);
  const plot = svg("svg", { class: "plot", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `Balance of ${nBits} bits, the largest ${Math.max(...values.map(Math.abs)).toFixed(2)} from even` });
  axes(plot, { xs: ticks(nBits - 1), ys: [[-most, `−${most}`], [0, "0"], [most, `+${most}`]], x, y, xTitle: "bit" });
  const width = Math.max(1, ((WIDTH - LEFT) / nBits) * 0.78);
  values.forEach((value, bit) => {
    const bar = svg("rect", { class: value < 0 ? "second" : "first", x: x(bit) - width / 2, y: Math.min(y(0), y(value)), width, height: Math.max(0.8, Math.abs(y(value) - y(0))) });
    const title = svg("title");
    title.textContent = `bit ${bit}: ${value >= 0 ? "+" : "−"}${Math.abs(value).toFixed(3)}`;
    bar.append(title);
    plot.append(bar);
  });
  plot.append(svg("line", { class: "zero", x1: LEFT, x2: WIDTH, y1: y(0), y2: y(0), "stroke-width": 0.8 }));
  return plot;
}

function correlation({ correlation: values, n_bits: nBits, mean_abs_correlation: average }) {
  const canvas = make("canvas", { class: "heat", width: nBits, height: nBits, role: "img", "aria-label": `Correlation of ${nBits} bits, ${(average ?? 0).toFixed(3)} in absolute mean off the diagonal` });
  const context = canvas.getContext("2d");
  const { accent, differs, page } = palette();
  values.forEach((row, i) => row.forEach((value, j) => {
    context.globalAlpha = 1;
    context.fillStyle = page;
    context.fillRect(j, i, 1, 1);
    context.globalAlpha = Math.min(1, Math.abs(value));
    context.fillStyle = value < 0 ? differs : accent;
    context.fillRect(j, i, 1, 1);
  }));
  return [canvas, make("div", { class: "ramp" }, "−1", make("i"), "+1")];
}
