// The items as cards: sorted and filtered; the address keeps the choice, so that it can be shared.

const FIRST = 48; // cards at first: the next section should not be far away
const STEP = 2000; // cards added at once
const MANY = 10; // minimum number of items for an open filter
const form = byId("filter");
const several = (name) => new Set(rows.map((row) => row[name])).size > 1;
const severalMethods = several("method");
const FIELDS = form ? [...form.elements].map((field) => field.name).filter(Boolean) : [];
const cards = new Map();
const haystacks = rows.map((row) => `${row.name}\n${row.id}\n${row.image}\n${row.method}`.toLowerCase());
let shown = []; // numbers of the entries, in order
let limit = FIRST;

const REASONS = { failed: "the image could not be read", damaged: "the explanation is damaged" };

const seen = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries)
    if (isIntersecting) {
      target.src = rows[target.dataset.place].thumbnail;
      seen.unobserve(target);
    }
}, { rootMargin: "600px" });

function card(place) {
  if (cards.has(place)) return cards.get(place);
  const row = rows[place];
  const link = element("a", { className: "card", href: `#${hashOf({ item: keyOf(row) })}`, "data-place": place });
  if (row.thumbnail) {
    const picture = element("img", { className: "thumb", alt: "", width: 320, height: 160, decoding: "async", "data-place": place });
    picture.loading = "lazy";
    seen.observe(picture);
    link.append(picture);
  } else link.append(element("span", { className: "thumb none" }, row.state));
  const words = element("span", { className: "words" }, element("strong", {}, row.name || row.id), ...chip(row.state));
  if (severalMethods) words.append(element("span", {}, row.method));
  if (isMissing(row)) words.append(element("span", { className: "missed" }, REASONS[row.state]));
  else {
    words.append(element("span", {}, scoresOf(row)));
    const more = [];
    if (row.agreement !== null) more.push(`runs agree: ${agreementOf(row)}`);
    if (row.deletion !== null) more.push(`deletion AUC ${number(row.deletion)}`);
    if (more.length) words.append(element("span", {}, more.join(" · ")));
  }
  words.append(element("span", { className: "soft", title: row.id }, row.id));
  link.append(words);
  const made = element("li", {}, link);
  cards.set(place, made);
  return made;
}

const chosen = () => Object.fromEntries(FIELDS.map((name) => [name, form.elements[name].value.trim()]));

function matches(row, place, by) {
  if (by.text && !by.text.toLowerCase().split(/\s+/).every((word) => haystacks[place].includes(word))) return false;
  if (by.class && row.name !== by.class) return false;
  if (by.method && row.method !== by.method) return false;
  if (by.state === "missing" ? !isMissing(row) : by.state === "explained" ? isMissing(row) : by.state && row.state !== by.state) return false;
  for (const name of ["score_image", "score_explanation", "evidence", "deletion"]) {
    const from = by[`${name}_from`], to = by[`${name}_to`];
    const value = name === "evidence" && row[name] !== null ? 100 * row[name] : row[name];
    if ((from || to) && value === null) return false;
    if (from && value < Number(from)) return false;
    if (to && value > Number(to)) return false;
  }
  return true;
}

const stem = (id) => id.slice(0, id.includes("@") ? id.lastIndexOf("@") : id.length); // of the image
const words = new Intl.Collator("en", { numeric: true });

function compare(a, b, by) {
  if (by.sort !== "state" && isMissing(rows[a]) !== isMissing(rows[b])) return isMissing(rows[a]) ? 1 : -1;
  if (!by.sort) {
    const order = words.compare(stem(rows[a].id), stem(rows[b].id));
    return (by.order ? -order : order) || inOrder(a, b);
  }
  const key = { class: "name" }[by.sort] ?? by.sort;
  const [x, y] = [a, b].map((place) => (rows[place][key] === UNDEFINED && key === "agreement" ? -Infinity : rows[place][key]));
  const none = (value) => value === null || value === undefined || value === "";
  if (none(x) || none(y)) return none(x) - none(y) || a - b; // items without a value come last in both orders
  const order = typeof x === "number" ? (x === y ? 0 : x - y) : words.compare(x, y);
  return (by.order ? -order : order) || a - b;
}

function update() {
  const by = chosen();
  shown = rows.map((_, place) => place).filter((place) => matches(rows[place], place, by)).sort((a, b) => compare(a, b, by));
  byId("grid").replaceChildren(...shown.slice(0, limit).map(card));
  const alike = (place, at) => at > 0 && rows[place].image !== "" && rows[place].image === rows[shown[at - 1]].image;
  const inRows = !by.sort && 2 * shown.filter(alike).length >= shown.length; // rows for each image with its classes
  byId("grid").classList.toggle("rows", inRows);
  const counts = shown.reduce((found, place) => found.set(rows[place].image, (found.get(rows[place].image) ?? 0) + 1), new Map());
  setColumns(byId("grid"), Math.max(1, ...counts.values()));
  shown.slice(0, limit).forEach((place, at) => card(place).classList.toggle("begins", inRows && !alike(place, at)));
  const left = Math.min(STEP, shown.length - limit);
  byId("more").hidden = left <= 0;
  byId("more").textContent = `Show ${left.toLocaleString("en")} more`;
  const some = left > 0 ? `, the first ${limit.toLocaleString("en")} below` : "";
  const entries = `${severalMethods ? "explanation" : "item"}${rows.length === 1 ? "" : "s"}`;
  byId("count").textContent = shown.length
    ? `${shown.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} ${entries} shown${some}`
    : `None of ${rows.length.toLocaleString("en")} ${entries} match. Reset to start over.`;
  form.querySelector("[type=reset]").hidden = !Object.values(by).some(Boolean);
}

// --- the address ---

function hashOf(changes) {
  const state = new URLSearchParams();
  for (const [name, value] of Object.entries({ ...(form ? chosen() : {}), ...changes })) if (value) state.set(name, value);
  return state.toString() || "items";
}

// Links of former pages name sparsity, 1 - mean evidence.
function renewed(state) {
  if (state.get("sort") === "sparsity") {
    state.set("sort", "evidence");
    state.set("order", state.get("order") ? "" : "down");
  }
  for (const [end, other] of [["from", "to"], ["to", "from"]])
    if (state.get(`sparsity_${end}`)) state.set(`evidence_${other}`, Number((100 * (1 - state.get(`sparsity_${end}`))).toFixed(6)));
  return state;
}

function follow() {
  const text = location.hash.slice(1);
  if (!text.includes("=")) {
    if (dialog.open) dialog.close();
    return;
  }
  const state = renewed(new URLSearchParams(text));
  for (const name of FIELDS) form.elements[name].value = state.get(name) ?? "";
  if (FIELDS.some((name) => state.get(name))) byId("tools").open = true;
  if (FIELDS.some((name) => /_(from|to)$/.test(name) && state.get(name))) byId("ranges").open = true;
  update();
  const wanted = state.get("item");
  const place = wanted ? rows.findIndex((row) => keyOf(row) === wanted) : -1;
  if (!wanted) byId("items").scrollIntoView();
  if (place >= 0) openItem(place, place);
  else if (dialog.open) dialog.close();
}

function focusCard(place) {
  const target = cards.get(place)?.firstElementChild;
  if (target?.isConnected) target.focus();
}

if (form) {
  for (const name of ["class", "method"]) {
    const select = form.elements[name];
    const counts = new Map();
    for (const row of rows) {
      const value = row[name === "class" ? "name" : name];
      counts.set(value, (counts.get(value) ?? 0) + 1);
    }
    const values = [...counts.keys()].filter(Boolean).sort(words.compare);
    select.append(...values.map((value) => element("option", { value }, `${value} (${counts.get(value).toLocaleString("en")})`)));
    select.closest("label").hidden = name === "method" && !severalMethods;
  }
  // The range of the values there are, instead of that of possible ones.
  for (const field of form.querySelectorAll("[type=number]")) {
    const [, name, end] = field.name.match(/(.*)_(from|to)$/);
    const scale = name === "evidence" ? 100 : 1;
    const known = rows.map((row) => row[name]).filter((value) => value !== null && value !== undefined);
    const outer = end === "from" ? Math.min : Math.max;
    if (known.length) field.placeholder = (scale * known.reduce((one, other) => outer(one, other))).toFixed(scale === 1 ? 2 : 1);
  }
  let waits = 0;
  const changed = () => {
    clearTimeout(waits);
    waits = setTimeout(() => {
      limit = FIRST;
      update();
      history.replaceState(null, "", `#${hashOf({ item: "" })}`);
    }, 60);
  };
  for (const kind of ["input", "change"]) form.addEventListener(kind, changed);
  byId("largest").hidden = rows.filter((row) => row.evidence !== null).length < 2;
  byId("largest").addEventListener("click", () => {
    form.elements.sort.value = "evidence";
    form.elements.order.value = "down";
    changed();
  });
  form.addEventListener("reset", () => setTimeout(changed));
  form.addEventListener("submit", (event) => event.preventDefault());
  byId("more").addEventListener("click", () => {
    const next = shown[limit];
    limit += STEP;
    update();
    focusCard(next);
  });
  // A card's own address is as old as the card; the current choice is added.
  byId("grid").addEventListener("click", (event) => {
    const link = event.target.closest("a.card");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    location.hash = hashOf({ item: keyOf(rows[link.dataset.place]) });
  });
  byId("overview")?.addEventListener("click", (event) => {
    const place = event.target.dataset.entry;
    if (place !== undefined) location.hash = hashOf({ item: keyOf(rows[place]) });
  });
  byId("tools").open = rows.length >= MANY && innerWidth > 800;
  byId("grid").classList.toggle("few", rows.length <= 3);
  update();
  follow();
  window.addEventListener("hashchange", follow);
}

for (const button of document.querySelectorAll(".enlarge"))
  button.addEventListener("click", () => button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true")));
