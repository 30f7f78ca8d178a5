"use strict";
// Values under the pointer or the arrow keys; a page without it says as much.
const tip = document.getElementById("tip");

function show(words, box) {
  tip.textContent = words;
  tip.hidden = false;
  const wide = tip.offsetWidth, high = tip.offsetHeight;
  const right = document.documentElement.clientWidth - wide - 8;
  tip.style.left = Math.max(8, Math.min(box.x + 14, right)) + scrollX + "px";
  const above = box.y - high - 12;
  tip.style.top = (above > 0 ? above : box.y + 18) + scrollY + "px";
}

function hide() {
  tip.hidden = true;
  document.querySelectorAll(".on").forEach((svg) => svg.classList.remove("on"));
}

function number(value, unit) {
  if (unit === "%") return (100 * value).toFixed(2) + " %";
  return value >= 1e6
    ? value.toLocaleString("en", { notation: "compact", maximumFractionDigits: 2 })
    : value.toLocaleString("en", { maximumSignificantDigits: 5 });
}

function nearest(points, x) {
  let found = points[0];
  for (const point of points) {
    if (Math.abs(point[0] - x) < Math.abs(found[0] - x)) found = point;
  }
  return found;
}

for (const svg of document.querySelectorAll("svg.chart")) {
  const told = JSON.parse(svg.nextElementSibling.textContent);
  const { left, right, low, high } = svg.dataset;
  const cursor = svg.querySelector(".cursor");
  const whole = svg.viewBox.baseVal.width;
  const all = told.curves.flatMap((curve) => curve.points.map((p) => p[0]));
  const places = [...new Set(all)].sort((a, b) => a - b);
  let at = places.length - 1;

  function point(place) {
    at = place;
    const x = places[at];
    const share = (x - low) / (high - low);
    const pixel = Number(left) + share * (right - left);
    cursor.setAttribute("x1", pixel);
    cursor.setAttribute("x2", pixel);
    svg.classList.add("on");
    const lines = [told.across + " " + number(x, "")];
    for (const curve of told.curves) {
      const near = curve.points.length ? nearest(curve.points, x) : [x, null];
      if (near[1] !== null) lines.push(curve.name + " " + number(near[1], told.unit));
    }
    for (const [epoch, words] of told.marks) if (epoch === x) lines.push(words);
    const box = svg.getBoundingClientRect();
    show(lines.join("\n"), { x: box.x + pixel * box.width / whole, y: box.y + 30 });
  }

  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const pixel = (event.clientX - box.x) * whole / box.width;
    const x = Number(low) + (pixel - left) / (right - left) * (high - low);
    point(places.indexOf(nearest(places.map((p) => [p]), x)[0]));
  });
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("focus", () => svg.matches(":focus-visible") && point(at));
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -1e9, End: 1e9 }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    point(Math.max(0, Math.min(places.length - 1, at + step)));
  });
}

// Of the blocks of a figure one takes the focus; arrow keys go to the others.
for (const svg of document.querySelectorAll("svg.wide")) {
  const blocks = [...svg.querySelectorAll("[tabindex]")];
  if (blocks.length) blocks[0].setAttribute("tabindex", "0");
  blocks.forEach((block, place) => {
    const words = block.getAttribute("aria-label");
    const title = block.querySelector("title");
    if (title) title.remove(); // or the browser shows it as well
    const say = (box) => show(words, { x: box.x, y: box.y });
    block.addEventListener("focus", () => say(block.getBoundingClientRect()));
    block.addEventListener("blur", hide);
    block.addEventListener("pointermove", (e) => say({ x: e.clientX, y: e.clientY }));
    block.addEventListener("pointerleave", hide);
    block.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
      const next = blocks[place + step];
      if (!next) return;
      event.preventDefault();
      block.setAttribute("tabindex", "-1");
      next.setAttribute("tabindex", "0");
      next.focus();
    });
  });
}

document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
addEventListener("beforeprint", () => {
  document.querySelectorAll("details").forEach((part) => (part.open = true));
});
if (document.documentElement.dataset.reload) {
  setInterval(() => document.hidden || location.reload(), 30000);
}
