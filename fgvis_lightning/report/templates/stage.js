"use strict";
// The pictures of an item and of other items of the same image: side by side, zoomed and moved together.

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

const PICTURES = ["image", "evidence", "mask", "overlay"];
const FADES = { evidence: 1, mask: 2 }; // from the image
const DIM = 0.35; // of the image in an overlay, where there is no evidence
const UNSEEN = 0.05; // evidence that is nowhere above is too faint to see, as in figures.py
const AS_IT_IS = 0.95; // evidence whose brightest part is above looks the same when it is brightened
const LARGEST = 48; // screen pixels for each pixel

// A factor with two digits.
const factor = (top) => `×\u00a0${(1 / top).toLocaleString("en", { minimumSignificantDigits: 2, maximumSignificantDigits: 2 })}`;

// The names of the pictures are those of the panels.
function channelsOf(view) {
  const count = Object.keys(view.means).length;
  return count ? `by ${count === 3 ? "color " : ""}channel` : "mask";
}

const stage = {
  box: byId("stage"),
  item: null, // the opened view with the pixels of its pictures
  pictures: [], // kind, item, frame, canvas, cross and note of each; first the pictures of the opened item
  zoom: 0, // screen pixels for each pixel of the first picture; 0 to fit the available room
  x: 0.5, // the middle of the visible part, in shares of a picture
  y: 0.5,

  async load(view) {
    const names = ["image", "evidence", "shown", "heat"];
    const loaded = await Promise.all(names.map((name) => pixelsOf(view[name])));
    const pixels = Object.fromEntries(names.map((name, place) => [name, loaded[place]]));
    return { view, ...pixels, size: pixels.evidence ?? pixels.heat };
  },

  open(item, keep) {
    const { view, image, evidence } = (this.item = item);
    byId("channels").hidden = !evidence || !Object.keys(view.means).length;
    [...byId("channels").querySelectorAll("span")].forEach((span, place) => (span.textContent = view.channels[place]));
    byId("brighten").parentElement.hidden = !evidence;
    byId("fade").parentElement.hidden = !image;
    byId("fade").value = 0;
    for (const place of ["faded", "compared"]) byId(place).textContent = evidence ? channelsOf(view) : "map";
    this.pictures = [];
    const kinds = PICTURES.filter((kind) => kind === "mask" || (image && (evidence || kind !== "overlay")));
    byId("views").replaceChildren(...kinds.map((kind) => this.figure(kind, item)));
    byId("others").replaceChildren();
    this.hush();
    this.resize(keep ? this.zoom : 0);
  },

  // A picture with a caption above it; compared pictures also get a title.
  figure(kind, item, title = "") {
    const { width, height } = item.size;
    const canvas = element("canvas", { width, height, role: "img" });
    const cross = element("i", { className: "cross" });
    const frame = element("div", { className: "frame" }, canvas, cross);
    frame.style.aspectRatio = `${width} / ${height}`;
    const note = element("span", { className: "soft" });
    const picture = { kind, item, frame, canvas, cross, note, title };
    this.pictures.push(picture);
    this.listen(picture);
    this.draw(picture);
    return element("figure", {}, element("figcaption", {}, note), frame);
  },

  draw(picture) {
    const { item, canvas, note, title } = picture;
    const { view, image, evidence, shown, heat, size } = item;
    const kind = picture.kind === "overlay" && !(image && evidence) ? (image ? "evidence" : "mask") : picture.kind;
    const fade = kind === "image" ? Number(byId("fade").value) / 100 : (FADES[kind] ?? 0);
    const mask = byId("channels").hidden ? "all" : document.querySelector("input[name=channel]:checked").value;
    const brighten = byId("brighten").checked;
    const top = picture.brightest ?? view.top;
    const gain = brighten && top ? 1 / top : 1;
    const context = canvas.getContext("2d");
    const drawn = context.createImageData(size.width, size.height);
    const first = fade < 1 ? 0 : 1;
    const part = fade - first;
    const mean = (data, at) => (data[at] + data[at + 1] + data[at + 2]) / 3;
    const share = (value) => Math.min(1, (value / 255) * view.scale * gain);
    // Image, evidence and mask of one pixel's channel, each from 0 to 255.
    const stops = (at, channel) => {
      const photo = image ? image.data[at + channel] : 0;
      if (!evidence) return [photo, shown ? shown.data[at + channel] : 0, heat.data[at + channel]];
      const gray = 255 * view.background[channel];
      const of = (place) => share(evidence.data[at + place]);
      return [photo, gray + of(channel) * (photo - gray), 255 * of(mask === "all" ? channel : Number(mask))];
    };
    const overlay = (at, channel) => {
      const dim = DIM * mean(image.data, at);
      const whole = (share(evidence.data[at]) + share(evidence.data[at + 1]) + share(evidence.data[at + 2])) / 3;
      const shown = brighten ? Math.sqrt(whole) : whole;
      return dim + shown * (image.data[at + channel] - dim);
    };
    for (let at = 0; at < drawn.data.length; at += 4) {
      for (let channel = 0; channel < 3; channel++) {
        const values = kind === "overlay" ? null : stops(at, channel);
        drawn.data[at + channel] = values ? values[first] + part * (values[first + 1] - values[first]) : overlay(at, channel);
      }
      drawn.data[at + 3] = 255;
    }
    context.putImageData(drawn, 0, 0);
    const single = mask === "all" ? channelsOf(view) : `in ${view.channels[mask]}`;
    const last = single === "mask" ? single : `evidence ${single}`;
    const names = ["image", evidence ? "evidence" : "image × map", evidence ? last : "map"];
    let text = kind === "overlay" ? "on the dimmed image" : names[first + part];
    text ??= `between ${names[first]} and ${names[first + 1]}`;
    if (evidence && (fade >= 1 || kind === "overlay")) {
      if (view.state) text += `: ${view.state}`;
      else if (brighten && kind === "overlay") text += `, brightened${top < AS_IT_IS ? ` ${factor(top)} or more` : ""}`;
      else if (brighten && top < AS_IT_IS) text += `, brightened ${factor(top)}`;
      else if (!brighten && view.scale < UNSEEN) text += ": too faint to see unless brightened";
    }
    note.textContent = text;
    canvas.setAttribute("aria-label", title ? `${title}: ${text}` : text);
    if (kind === "image") byId("fade").setAttribute("aria-valuetext", text);
  },

  // Compared pictures are brightened by the same factor, so that their brightness can be compared, too.
  alike() {
    const compared = this.pictures.filter((picture) => picture.title);
    const top = Math.max(...compared.map(({ item }) => item.view.top ?? 0));
    for (const picture of compared) picture.brightest = top;
    for (const picture of compared) this.draw(picture);
  },

  redraw() {
    if (this.item) for (const picture of this.pictures) this.draw(picture);
  },

  // Screen pixels for each pixel of a picture that fits the available room.
  fit: (picture) => picture.frame.clientWidth / picture.item.size.width,

  get scale() {
    return this.zoom || this.fit(this.pictures[0]);
  },

  get times() {
    return this.scale / this.fit(this.pictures[0]);
  },

  // Zooms and keeps the point (x, y) of the frame, in shares of it, in place.
  resize(zoom, x = 0.5, y = 0.5) {
    if (!this.item) return;
    const before = this.times;
    this.zoom = zoom;
    const change = 1 / before - 1 / this.times;
    this.move((x - 0.5) * change, (y - 0.5) * change);
  },

  // Moves all pictures, by shares of a picture.
  move(across, down) {
    const { times, zoom } = this;
    const within = (middle) => Math.min(1 - 0.5 / times, Math.max(0.5 / times, middle));
    this.x = within(this.x + across);
    this.y = within(this.y + down);
    for (const picture of this.pictures) this.place(picture);
    byId("detail").classList.toggle("zoomed", zoom > 0);
    byId("zoom").textContent = `${Number(this.scale.toFixed(1))} screen pixels per pixel`;
  },

  place(picture) {
    const { canvas, frame, item } = picture;
    const scale = this.fit(picture) * this.times;
    const [width, height] = [item.size.width * scale, item.size.height * scale];
    canvas.style.width = this.zoom ? `${width}px` : "100%"; // a frame may end within a screen pixel
    canvas.style.height = this.zoom ? `${height}px` : "auto";
    canvas.style.imageRendering = scale < 2 ? "auto" : "pixelated";
    const [left, top] = [width, height].map((side, axis) => (0.5 / this.times - [this.x, this.y][axis]) * side);
    canvas.style.transform = `translate(${Math.round(left)}px, ${Math.round(top)}px)`;
  },

  step(larger, x, y) {
    if (!this.item) return;
    const now = this.scale;
    const next = larger ? Math.max(Math.floor(now) + 1, Math.round(now * 1.5)) : Math.min(Math.ceil(now) - 1, Math.round(now / 1.5));
    this.resize(next <= this.fit(this.pictures[0]) ? 0 : Math.min(LARGEST, next), x, y);
  },

  // Shows a pixel's position, in this and all other pictures, and its evidence.
  tell(picture, x, y) {
    for (const { cross } of this.pictures) {
      cross.style.left = `${100 * x}%`;
      cross.style.top = `${100 * y}%`;
    }
    const { view, evidence, size } = picture.item;
    const pixel = (middle, share, count) => Math.floor((middle + (share - 0.5) / this.times) * count);
    const [across, down] = [pixel(this.x, x, size.width), pixel(this.y, y, size.height)];
    if (!evidence || across < 0 || down < 0 || across >= size.width || down >= size.height) return this.hush();
    byId("detail").classList.add("pointed");
    const at = 4 * (down * size.width + across);
    const share = (channel) => number((evidence.data[at + channel] / 255) * view.scale, 2);
    const shares = byId("channels").hidden ? share(0) : view.channels.map((name, channel) => `${name} ${share(channel)}`).join(", ");
    byId("pixel").textContent = `${picture.title ? `${picture.title}, ` : ""}pixel ${across}, ${down}: evidence ${shares}`;
  },

  hush() {
    byId("detail").classList.remove("pointed");
    byId("pixel").textContent = "Point at or touch a pixel to read its evidence.";
  },

  // Wheel, mouse and fingers: one finger moves zoomed pictures, two zoom.
  listen(picture) {
    const { frame } = picture;
    const held = new Map(); // pointer → position, in shares of the frame
    const where = (event) => {
      const box = frame.getBoundingClientRect();
      return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    };
    const middle = (points) => [0, 1].map((axis) => points.reduce((sum, point) => sum + point[axis], 0) / points.length);
    const apart = ([a, b]) => Math.hypot((a[0] - b[0]) * frame.clientWidth, (a[1] - b[1]) * frame.clientHeight);
    frame.addEventListener("wheel", (event) => {
      if (!this.zoom && event.deltaY > 0 && !event.ctrlKey) return; // already smallest: the page scrolls
      event.preventDefault();
      this.step(event.deltaY < 0, ...where(event));
    }, { passive: false });
    frame.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      held.set(event.pointerId, where(event));
      if (event.pointerType === "mouse") frame.setPointerCapture(event.pointerId);
      this.tell(picture, ...where(event));
    });
    frame.addEventListener("pointermove", (event) => {
      const now = where(event);
      if (held.has(event.pointerId)) {
        const before = [...held.values()];
        held.set(event.pointerId, now);
        const after = [...held.values()];
        const [from, to] = [middle(before), middle(after)];
        if (after.length === 2) {
          const next = Math.min(LARGEST, this.scale * (apart(after) / Math.max(1, apart(before))));
          this.resize(next <= this.fit(this.pictures[0]) ? 0 : next, ...to);
        }
        if (this.zoom) this.move((from[0] - to[0]) / this.times, (from[1] - to[1]) / this.times);
      }
      this.tell(picture, ...now);
    });
    for (const end of ["pointerup", "pointercancel"])
      frame.addEventListener(end, (event) => {
        if (held.size === 2 && this.zoom) this.resize(Math.max(Math.ceil(this.fit(this.pictures[0])), Math.round(this.zoom)));
        held.delete(event.pointerId);
      });
    frame.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && this.hush()); // a finger hides it
  },
};

// A scrollbar that comes or goes changes the room for pictures, too.
const room = new ResizeObserver(() => stage.item && stage.move(0, 0));
for (const id of ["views", "others"]) room.observe(byId(id));
byId("fade").addEventListener("input", () => stage.redraw());
byId("brighten").addEventListener("change", () => stage.redraw());
byId("channels").addEventListener("change", () => stage.redraw());
byId("in").addEventListener("click", () => stage.step(true));
byId("out").addEventListener("click", () => stage.step(false));
byId("fit").addEventListener("click", () => stage.resize(0));
