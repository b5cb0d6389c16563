// The view of one item.

const rows = JSON.parse(byId("rows").textContent);
const dialog = byId("detail");
const views = new Map(); // number → callbacks that wait for the view of that entry
let opened = null;
let opener = null; // number of the card that gets the focus back

const keyOf = (row) => (severalMethods ? `${row.method}/${row.id}` : row.id);
const isMissing = (row) => row.state === "failed" || row.state === "damaged";
const LEVELS = { reached: "reached", missed: "missed" };
const AREAS = { deletion: "deletion AUC", insertion: "insertion AUC" };
const MOST = 24; // maximum number of compared items of one image

const percent = (share) => (share > 0 && share < 0.001 ? (100 * share).toPrecision(1) : (100 * share).toFixed(1));
const UNDEFINED = "undefined"; // agreement of runs of which one has a constant mask
const agreementOf = (row) => (row.agreement === UNDEFINED ? UNDEFINED : number(row.agreement));
const evidenceOf = (row) => `${percent(Math.max(0, row.evidence))}\u00a0%`;
// The classes of an image in the order of the run, each by all methods, in the list as well as in an item's view.
const firsts = new Map();
rows.forEach(({ id }, at) => firsts.has(id) || firsts.set(id, at));
const inOrder = (a, b) => firsts.get(rows[a].id) - firsts.get(rows[b].id) || a - b;
// As many columns as there are pictures of one image, or else rows of about the same length.
const setColumns = (grid, count) => grid.style.setProperty("--columns", Math.ceil(count / Math.ceil(count / 5)));
const chip = (state) => (state === "missed" ? [element("span", { className: "missed" }, "level missed")] : []);

function scoresOf(row) {
  const scores = [row.score_image, row.score_explanation].filter((score) => score !== null).map((score) => number(score));
  return [`score ${scores.join(" → ")}`, ...(row.evidence === null ? [] : [`mean evidence ${evidenceOf(row)}`])].join(" · ");
}

function received(place, view) {
  views.get(place)?.resolve(view);
}

// In this page, or in a separate script next to it: a page from a file may not fetch.
function viewOf(place) {
  const text = byId(`view-${place}`);
  if (text) return Promise.resolve(JSON.parse(text.textContent));
  if (!views.has(place)) {
    let resolve, reject;
    const promise = new Promise((good, bad) => ([resolve, reject] = [good, bad]));
    views.set(place, { promise, resolve });
    const script = element("script", { src: `items/${place}.js` });
    script.onerror = () => (views.delete(place), reject(new Error("missing")));
    script.onload = () => script.remove();
    document.head.append(script);
    if (views.size > 12) views.delete(views.keys().next().value);
  }
  return views.get(place).promise;
}

async function openItem(place, from = opener) {
  const row = rows[place];
  const same = opened !== null && row.image && rows[opened].image === row.image; // the zoom is kept
  opened = place;
  opener = from;
  byId("detail-title").textContent = row.name || row.id;
  byId("detail-id").textContent = severalMethods ? `${row.method}: ${row.id}` : row.id;
  byId("copied").textContent = "";
  const at = shown.indexOf(place);
  byId("place").textContent = at < 0 ? "" : `${(at + 1).toLocaleString("en")} of ${shown.length.toLocaleString("en")}`;
  byId("previous").disabled = at <= 0;
  byId("next").disabled = at < 0 || at === shown.length - 1;
  if (!dialog.open) {
    dialog.showModal();
    dialog.scrollTop = 0;
    byId("detail-title").focus();
  }
  if (document.activeElement?.disabled || document.activeElement === document.body) byId("detail-title").focus();
  try {
    const view = isMissing(row) ? null : await viewOf(place);
    if (opened !== place) return;
    fill(row, view);
    const item = view && (await stage.load(view));
    if (!view || opened !== place) return;
    stage.open(item, same);
    await fillOthers(row, place, item);
  } catch {
    if (opened === place) tell(`The pictures of this item cannot be read: items/${place}.js is missing or damaged.`);
  }
}

function fill(row, view) {
  tell(row.reason || (view.problem && `The image is not shown: ${view.problem}${view.panel ? " Below is the panel of the run." : ""}`));
  byId("missed").hidden = row.state !== "missed";
  for (const id of ["stage", "controls", "pixel", "about"]) byId(id).hidden = !view;
  byId("compare").hidden = true;
  const panel = byId("panel");
  panel.hidden = !view?.panel;
  panel.alt = view?.panel ? "Panel of the run: image, evidence and mask side by side" : "";
  if (view?.panel) panel.src = view.panel;
  else panel.removeAttribute("src");
  fillScores(row, view);
  const means = Object.keys(view?.means ?? {}).length ? [element("h3", {}, `Mean evidence ${channelsOf(view)}`), drawMeans(view.means)] : [];
  byId("channel-means").replaceChildren(...means);
  byId("curves").replaceChildren(...(view?.curves ? [element("h3", {}, "Curves"), drawCurves(view.curves, view.values)] : []));
  fillTable("metadata", { ...(row.image ? { image: row.image } : {}), ...(view?.metadata ?? {}) });
  fillTable("settings", view?.settings ?? {});
  byId("settings-box").hidden = !Object.keys(view?.settings ?? {}).length;
}

function tell(text) {
  byId("problem").hidden = !text;
  byId("problem").textContent = text || "";
}

function fillScores(row, view) {
  const facts = view ? { "score on the image": number(row.score_image) } : {};
  if (row.score_explanation !== null) facts[view.after] = number(row.score_explanation);
  if (row.evidence !== null) facts["mean evidence"] = evidenceOf(row);
  if (LEVELS[row.state]) facts.level = LEVELS[row.state];
  if (row.agreement !== null) facts[`agreement of the runs (${byId("scores").dataset.usual})`] = agreementOf(row);
  fillFacts("scores", facts, row.state);
  const measured = Object.entries(view?.values ?? {}).filter(([name]) => !(name in row) || name in AREAS);
  fillFacts("values", Object.fromEntries(measured.map(([name, value]) => [AREAS[name] ?? name, number(value)])));
}

function fillFacts(id, facts, state) {
  const boxes = Object.entries(facts).map(([name, value]) =>
    element("div", { className: name === "level" ? state : "" }, element("dt", {}, name), element("dd", {}, value)));
  byId(id).replaceChildren(...boxes);
}

function fillTable(id, values) {
  const lines = Object.entries(values).map(([name, value]) =>
    element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, value)));
  byId(id).tBodies[0].replaceChildren(...lines);
}

// The same item by other methods, and other classes of the same image.
async function fillOthers(row, place, item) {
  const same = rows.map((_, at) => at).filter((at) => row.image && rows[at].image === row.image && !isMissing(rows[at])).sort(inOrder);
  byId("compare").hidden = same.length < 2;
  if (same.length < 2) return;
  setColumns(byId("others"), Math.min(MOST, same.length));
  const start = Math.max(0, Math.min(same.indexOf(place) - MOST / 2, same.length - MOST));
  for (const at of same.slice(start, start + MOST)) {
    const other = at === place ? item : await viewOf(at).then((view) => stage.load(view), () => null);
    if (opened !== place) return;
    if (!other) continue;
    const { id, name, method, state } = rows[at];
    const kind = document.querySelector("input[name=compared]:checked").value;
    const title = id === row.id && severalMethods ? method : `${name}${severalMethods ? `, ${method}` : ""}`;
    const words = element("span", {}, at === place
      ? element("strong", { "aria-current": "true" }, title)
      : element("a", { href: `#${hashOf({ item: keyOf(rows[at]) })}` }, title));
    const figure = stage.figure(kind, other, title);
    figure.firstChild.prepend(words, element("span", {}, scoresOf(rows[at])), ...chip(state));
    byId("others").append(figure);
    stage.move(0, 0);
  }
  stage.alike();
}

function go(step) {
  const next = shown[shown.indexOf(opened) + step];
  if (next === undefined || !shown.includes(opened)) return;
  opener = next;
  history.replaceState(null, "", `#${hashOf({ item: keyOf(rows[next]) })}`);
  openItem(next);
}

byId("previous").addEventListener("click", () => go(-1));
byId("next").addEventListener("click", () => go(1));
byId("copy").addEventListener("click", async () => {
  byId("copied").textContent = await navigator.clipboard.writeText(location.href)
    .then(() => "Copied", () => "Not allowed here. Copy it from the address bar.");
});
for (const radio of document.querySelectorAll("input[name=compared]"))
  radio.addEventListener("change", () => {
    for (const picture of stage.pictures) if (picture.title) picture.kind = radio.value;
    stage.redraw();
  });
byId("close").addEventListener("click", () => dialog.close());
dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
dialog.addEventListener("close", () => {
  opened = null;
  stage.item = null;
  history.replaceState(null, "", `#${hashOf({ item: "" })}`);
  focusCard(opener);
});

dialog.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const field = event.target.matches("input[type=range], input[type=radio]");
  const arrow = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  const fade = byId("fade");
  const channel = { r: "0", g: "1", b: "2", a: "all" }[event.key];
  if (arrow && event.target === stage.box && stage.zoom > 0) stage.move(...arrow.map((step) => step / 8 / stage.times));
  else if (arrow?.[0] && !field) go(arrow[0]);
  else if (event.key === "+" || event.key === "=") stage.step(true);
  else if (event.key === "-") stage.step(false);
  else if (event.key === "0") stage.resize(0);
  else if (event.key === "f" && !fade.parentElement.hidden) {
    fade.value = (100 * Math.floor(Number(fade.value) / 100) + 100) % 300;
    stage.redraw();
  } else if (channel && !byId("channels").hidden) {
    document.querySelector(`input[name=channel][value="${channel}"]`).checked = true;
    stage.redraw();
  } else return;
  event.preventDefault();
});
