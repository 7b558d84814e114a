// Pictures from outside: dropped, pasted, or picked.

import { $ } from "./elements.js";

const SIGNATURES = [
  [0, [0xff, 0xd8, 0xff]], // JPEG
  [0, [0x89, 0x50, 0x4e, 0x47]], // PNG
  [8, [0x57, 0x45, 0x42, 0x50]], // WebP
  [0, [0x47, 0x49, 0x46, 0x38]], // GIF
  [0, [0x42, 0x4d]], // BMP
  [0, [0x49, 0x49, 0x2a, 0x00]], // TIFF
  [0, [0x4d, 0x4d, 0x00, 0x2a]],
  [4, [0x66, 0x74, 0x79, 0x70, 0x61, 0x76, 0x69]], // AVIF
];

// Why the server would not take a file, or null. It decides; this saves the journey.
export async function whyNot(file, mostBytes) {
  const name = file.name ? `“${file.name}”` : "This file";
  if (!file.size) return `${name} is empty.`;
  if (file.size > mostBytes - 4096) return `${name} has ${megabytes(file.size)}, and the server takes ${megabytes(mostBytes)} at most. Choose a smaller picture.`;
  const head = new Uint8Array(await file.slice(0, 16).arrayBuffer());
  if (String.fromCharCode(...head.slice(4, 8)) === "ftyp" && /^(hei|hev|mif|msf)/.test(String.fromCharCode(...head.slice(8, 12)))) {
    return `${name} is a HEIC picture, which is not supported. Save it as JPEG first.`;
  }
  const isPortable = head[0] === 0x50 && head[1] >= 0x31 && head[1] <= 0x36; // PBM, PGM, PPM
  if (isPortable || SIGNATURES.some(([start, bytes]) => bytes.every((byte, i) => head[start + i] === byte))) return null;
  return `${name} is not a picture of a kind that is known here: JPEG, PNG, WebP, GIF, AVIF, BMP, TIFF or PPM.`;
}

function megabytes(bytes) {
  return `${(bytes / 2 ** 20).toFixed(bytes < 10 * 2 ** 20 ? 1 : 0)} MB`;
}

export function takeIn(onFile, onRefusal) {
  const input = $("file");
  input.addEventListener("change", () => {
    if (input.files.length) onFile(input.files[0]);
    input.value = "";
  });
  document.addEventListener("paste", (event) => {
    if (event.target.closest?.("input")) return;
    const file = [...(event.clipboardData?.files ?? [])][0];
    if (file) onFile(file);
    else if (event.clipboardData?.getData("text").trim()) onRefusal("The clipboard holds text. Copy the picture itself, or save it and drop the file; addresses are not fetched.");
  });
  let depth = 0; // dragenter and dragleave come for every element on the way
  const veil = $("veil");
  addEventListener("dragenter", (event) => {
    event.preventDefault();
    depth++;
    veil.hidden = false;
  });
  addEventListener("dragleave", () => {
    depth = Math.max(0, depth - 1);
    veil.hidden = depth === 0;
  });
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    depth = 0;
    veil.hidden = true;
    const file = event.dataTransfer.files[0];
    if (file) onFile(file);
    else onRefusal("That was not a file. Save the picture and drop the file; addresses are not fetched.");
  });
}

export const choose = () => $("file").click();
