// Deletion and insertion curves, and the evidence in each channel, as drawings.

function drawn(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function drawCurves(curves, values) {
  const left = 34, right = 330, top = 10, bottom = 150;
  const highest = Math.max(1, ...curves.flat());
  const x = (share) => left + share * (right - left);
  const y = (score) => bottom - (score / highest) * (bottom - top);
  const words = (name) => (values[name] === undefined ? name : `${name}, AUC ${number(values[name])}`);
  const picture = drawn("svg", { viewBox: "0 0 340 194", role: "img" });
  const title = `Score of the class during deletion and insertion of pixels: ${words("deletion")}; ${words("insertion")}`;
  picture.append(drawn("title", {}, title));
  picture.append(drawn("line", { x1: left, x2: right, y1: bottom, y2: bottom, class: "axis" }));
  picture.append(drawn("line", { x1: left, x2: left, y1: top, y2: bottom, class: "axis" }));
  for (const tick of [0, highest / 2, highest])
    picture.append(drawn("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, String(Number(tick.toFixed(2)))));
  for (const [share, anchor] of [[0, "start"], [0.5, "middle"], [1, "end"]])
    picture.append(drawn("text", { x: x(share), y: bottom + 17, "text-anchor": anchor }, `${100 * share} %${share === 0.5 ? " of the pixels" : ""}`));
  ["deletion", "insertion"].forEach((name, place) => {
    const points = curves[place].map((score, at, all) => `${x(at / (all.length - 1)).toFixed(1)},${y(score ?? 0).toFixed(1)}`);
    picture.append(drawn("polyline", { points: points.join(" "), class: `line ${name}` }));
    picture.append(drawn("text", { x: left + 152 * place, y: bottom + 38, class: name }, `${place ? "╌" : "─"} ${words(name)}`));
  });
  return picture;
}

function drawMeans(means) {
  const box = element("div", { className: "means" });
  const most = Math.max(...Object.values(means), 1e-9);
  for (const [name, mean] of Object.entries(means)) {
    const bar = drawn("svg", { viewBox: "0 0 100 6", preserveAspectRatio: "none", "aria-hidden": "true" });
    bar.append(drawn("rect", { x: 0, y: 0, width: (100 * mean) / most, height: 6, class: "bar" }));
    box.append(element("span", {}, name), bar, element("span", {}, `${percent(mean)} %`));
  }
  return box;
}
