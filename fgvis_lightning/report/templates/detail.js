// The view of one item.

const rows = JSON.parse(byId("rows").textContent);
const dialog = byId("detail");
const views = new Map(); // number → what waits for the view of that entry
let opened = null;
let opener = null; // number of the card that gets the focus back

const keyOf = (row) => (severalMethods ? `${row.method}/${row.id}` : row.id);
const isMissing = (row) => row.state === "failed" || row.state === "damaged";

function received(place, view) {
  views.get(place)?.resolve(view);
}

// In this page, or in a script of its own beside it: a page from a file may not fetch.
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
  opened = place;
  opener = from;
  byId("detail-title").textContent = row.name || row.id;
  byId("detail-id").textContent = severalMethods ? `${row.method}: ${row.id}` : row.id;
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
    fill(row, isMissing(row) ? null : await viewOf(place));
    if (isMissing(row) || opened !== place) return;
    const put = await stage.show(await viewOf(place));
    if (opened === place) put();
  } catch {
    if (opened === place) tell(`The pictures of this item cannot be read: items/${place}.js is gone or damaged.`);
  }

  function fill(row, view) {
    if (opened !== place) return;
    tell(row.reason || (view.problem && `The image is not shown: ${view.problem}${view.panel ? " Below is the panel of the run." : ""}`));
    for (const id of ["stage", "controls", "pixel"]) byId(id).hidden = !view;
    const panel = byId("panel");
    panel.hidden = !view?.panel;
    panel.alt = view?.panel ? "Panel of the run: image, evidence and mask side by side" : "";
    if (view?.panel) panel.src = view.panel;
    else panel.removeAttribute("src");
    fillScores(row, view);
    fillOthers(row, place);
    fillTable("metadata", { ...(row.image ? { image: row.image } : {}), ...(view?.metadata ?? {}) });
    fillTable("settings", view?.settings ?? {});
    byId("settings-box").hidden = !Object.keys(view?.settings ?? {}).length;
    const curves = byId("curves");
    curves.replaceChildren();
    if (view?.curves) curves.append(drawCurves(view.curves, view.values));
    else curves.append(element("p", { className: "note" }, view ? "None: evaluate makes them, see the overview." : "None."));
  }
}

function tell(text) {
  byId("problem").hidden = !text;
  byId("problem").textContent = text || "";
}

function fillScores(row, view) {
  const removes = view && (view.game === "deletion" || view.game === "repression");
  const facts = { "score on the image": row.score_image };
  if (row.score_explanation !== null) facts[removes ? "score without the evidence" : "score on the explanation"] = row.score_explanation;
  if (row.sparsity !== null) facts.sparsity = row.sparsity;
  if (typeof view?.agreement === "number") facts["agreement of the runs"] = view.agreement;
  const names = { deletion: "deletion AUC", insertion: "insertion AUC" };
  for (const [name, value] of Object.entries(view?.values ?? {})) if (!(name in facts)) facts[names[name] ?? name] = value;
  const states = { reached: "reached", missed: "not reached" };
  const box = byId("scores");
  box.replaceChildren();
  if (!view) return byId("channel-means").replaceChildren();
  const list = Object.entries(facts).map(([name, value]) => [name, number(value)]);
  if (states[row.state]) list.push(["level", states[row.state]]);
  for (const [name, value] of list) box.append(element("div", {}, element("dt", {}, name), element("dd", {}, value)));
  const means = Object.keys(view.means ?? {}).length ? [element("h3", {}, "Evidence by channel"), drawMeans(view.means)] : [];
  byId("channel-means").replaceChildren(...means);
}

function fillTable(id, values) {
  const lines = Object.entries(values).map(([name, value]) =>
    element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, value)));
  byId(id).tBodies[0].replaceChildren(...lines);
}

// The same item by other methods, and other classes of the same image.
function fillOthers(row, place) {
  const others = rows.map((other, at) => ({ other, at }))
    .filter(({ other, at }) => at !== place && row.image && other.image === row.image).slice(0, 24);
  const list = element("ul");
  for (const { other, at } of others) {
    const link = element("a", { href: `#${hashOf({ item: keyOf(other) })}` });
    if (other.thumbnail) link.append(element("img", { src: other.thumbnail, alt: "", loading: "lazy" }));
    link.append(element("span", {}, other.id === row.id ? other.method : `${other.name}${severalMethods ? `, ${other.method}` : ""}`));
    list.append(element("li", {}, link));
  }
  byId("others").replaceChildren(...(others.length ? [element("h3", {}, "The same image"), list] : []));
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
  const panning = event.target === stage.box && stage.zoom > 0;
  const fade = byId("fade");
  const channel = { r: "0", g: "1", b: "2", a: "all" }[event.key];
  if (event.key === "ArrowLeft" && !field && !panning) go(-1);
  else if (event.key === "ArrowRight" && !field && !panning) go(1);
  else if (event.key === "+" || event.key === "=") stage.step(true);
  else if (event.key === "-") stage.step(false);
  else if (event.key === "0") stage.resize(0);
  else if (event.key === "f" && !fade.disabled) {
    fade.value = (100 * Math.floor(Number(fade.value) / 100) + 100) % 300;
    stage.draw();
  } else if (channel && !byId("channels").hidden) {
    document.querySelector(`input[name=channel][value="${channel}"]`).checked = true;
    fade.value = 200;
    stage.draw();
  } else return;
  event.preventDefault();
});
