"use strict";
// The picture of an item: image, evidence and mask, one fading into the next, at whole pixels and any size.

const byId = (id) => document.getElementById(id);
const number = (value, digits = 3) => {
  if (value === null || value === undefined) return "–";
  const least = 10 ** -digits;
  if (value > 0 && value < least / 2) return `<${least.toFixed(digits)}`;
  if (value < 1 && value >= 1 - least / 2) return `>${(1 - least).toFixed(digits)}`;
  return value.toFixed(digits);
};

function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key in made) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

async function pixelsOf(source) {
  if (!source) return null;
  const image = new Image();
  image.src = source;
  await image.decode();
  const canvas = element("canvas", { width: image.naturalWidth, height: image.naturalHeight });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

const stage = {
  box: byId("stage"),
  canvas: byId("canvas"),
  item: null, // its view with the pixels of its pictures
  zoom: 0, // screen pixels for each pixel; 0 for as large as there is room

  async show(view) {
    this.item = null;
    const names = ["image", "evidence", "shown", "heat"];
    const loaded = await Promise.all(names.map((name) => pixelsOf(view[name])));
    const pixels = Object.fromEntries(names.map((name, place) => [name, loaded[place]]));
    return () => {
      const size = pixels.evidence ?? pixels.heat;
      this.item = { view, ...pixels, size };
      this.canvas.width = size.width;
      this.canvas.height = size.height;
      byId("channels").hidden = byId("brighten").parentElement.hidden = !pixels.evidence;
      byId("fade").disabled = !pixels.image;
      byId("last-stop").textContent = pixels.evidence ? "mask" : "map";
      if (!pixels.image) byId("fade").value = 200;
      this.draw();
      this.resize(0);
    };
  },

  // The three pictures of one pixel's channel, each from 0 to 255.
  values(at, channel, mask, gain) {
    const { view, image, evidence, shown, heat } = this.item;
    const photo = image ? image.data[at + channel] : 0;
    if (!evidence) return [photo, shown ? shown.data[at + channel] : 0, heat.data[at + channel]];
    const share = (evidence.data[at + channel] / 255) * view.scale;
    const gray = 255 * view.background[channel];
    const picked = mask === "all" ? evidence.data[at + channel] : evidence.data[at + Number(mask)];
    return [photo, gray + share * (photo - gray), Math.min(255, picked * gain)];
  },

  draw() {
    if (!this.item) return;
    const { view, evidence, size } = this.item;
    const fade = Number(byId("fade").value) / 100;
    const mask = document.querySelector("input[name=channel]:checked").value;
    const gain = byId("brighten").checked ? view.scale / view.top : view.scale;
    const context = this.canvas.getContext("2d");
    const drawn = context.createImageData(size.width, size.height);
    const first = fade < 1 ? 0 : 1;
    const part = fade - first;
    for (let at = 0; at < drawn.data.length; at += 4) {
      for (let channel = 0; channel < 3; channel++) {
        const values = this.values(at, channel, mask, gain);
        drawn.data[at + channel] = values[first] + part * (values[first + 1] - values[first]);
      }
      drawn.data[at + 3] = 255;
    }
    context.putImageData(drawn, 0, 0);
    const words = ["image", "explanation", evidence ? "mask" : "map"];
    const shows = part === 0 ? words[first] : part === 1 ? words[first + 1] : `between ${words[first]} and ${words[first + 1]}`;
    const channel = { all: "", 0: ", red channel", 1: ", green channel", 2: ", blue channel" }[mask];
    this.canvas.setAttribute("aria-label", `${shows}${shows.includes("mask") && !byId("channels").hidden ? channel : ""}`);
    byId("fade").setAttribute("aria-valuetext", shows);
  },

  get fit() {
    const { width, height } = this.canvas;
    return Math.min(this.box.offsetWidth / width, this.box.offsetHeight / height);
  },

  get scale() {
    return this.zoom || this.fit;
  },

  // Larger or smaller, with the point (x, y) of the box in its place.
  resize(zoom, x = this.box.clientWidth / 2, y = this.box.clientHeight / 2) {
    if (!this.item) return;
    const before = this.canvas.getBoundingClientRect();
    const box = this.box.getBoundingClientRect();
    const across = (x + box.left - before.left) / before.width;
    const down = (y + box.top - before.top) / before.height;
    this.zoom = zoom;
    const { width, height } = this.canvas;
    this.canvas.style.width = `${width * this.scale}px`;
    this.canvas.style.height = `${height * this.scale}px`;
    this.box.scrollLeft = across * width * this.scale - x;
    this.box.scrollTop = down * height * this.scale - y;
    this.box.classList.toggle("grab", zoom > 0);
    byId("zoom").textContent = `${zoom ? "" : "fit: "}${Number(this.scale.toFixed(1))} screen pixels per pixel`;
  },

  step(larger, x, y) {
    const now = this.scale;
    const next = larger ? Math.max(Math.floor(now) + 1, Math.round(now * 1.5)) : Math.min(Math.ceil(now) - 1, Math.round(now / 1.5));
    this.resize(next <= this.fit ? 0 : Math.min(48, next), x, y);
  },

  tell(event) {
    const note = byId("pixel");
    if (!this.item) return;
    const frame = this.canvas.getBoundingClientRect();
    const x = Math.floor(((event.clientX - frame.left) / frame.width) * this.canvas.width);
    const y = Math.floor(((event.clientY - frame.top) / frame.height) * this.canvas.height);
    const { view, evidence, size } = this.item;
    if (!evidence || x < 0 || y < 0 || x >= size.width || y >= size.height) {
      note.textContent = "\u00a0";
      return;
    }
    const at = 4 * (y * size.width + x);
    const shares = [0, 1, 2].map((channel) => number((evidence.data[at + channel] / 255) * view.scale, 2));
    note.textContent = `pixel ${x}, ${y}: evidence red ${shares[0]}, green ${shares[1]}, blue ${shares[2]}`;
  },
};

stage.box.addEventListener("wheel", (event) => {
  event.preventDefault();
  const box = stage.box.getBoundingClientRect();
  stage.step(event.deltaY < 0, event.clientX - box.left, event.clientY - box.top);
}, { passive: false });

let held = null;
stage.box.addEventListener("pointerdown", (event) => {
  if (event.pointerType !== "mouse" || event.button !== 0) return; // a finger scrolls by itself
  held = { x: event.clientX + stage.box.scrollLeft, y: event.clientY + stage.box.scrollTop };
  stage.box.setPointerCapture(event.pointerId);
});
stage.box.addEventListener("pointermove", (event) => {
  if (held) {
    stage.box.scrollLeft = held.x - event.clientX;
    stage.box.scrollTop = held.y - event.clientY;
  }
  stage.tell(event);
});
for (const end of ["pointerup", "pointercancel"]) stage.box.addEventListener(end, () => (held = null));
stage.box.addEventListener("pointerleave", () => (byId("pixel").textContent = "\u00a0"));
window.addEventListener("resize", () => stage.zoom === 0 && stage.resize(0));

byId("fade").addEventListener("input", () => stage.draw());
byId("brighten").addEventListener("change", () => stage.draw());
byId("in").addEventListener("click", () => stage.step(true));
byId("out").addEventListener("click", () => stage.step(false));
byId("fit").addEventListener("click", () => stage.resize(0));
byId("channels").addEventListener("change", () => {
  byId("fade").value = 200; // the channels are the mask's
  stage.draw();
});
