"use strict";
(() => {
  const figure = document.querySelector(".surface");
  if (!figure) return;
  const data = JSON.parse(figure.dataset.plane);
  const canvas = figure.querySelector("canvas"), readout = figure.querySelector(".readout");
  const pen = canvas.getContext("2d");
  if (!pen || data.xs.length < 2 || data.ys.length < 2) return;
  figure.hidden = false;
  const START = {turn: -0.7, tilt: 0.55, zoom: 1};
  let view = {...START}, shown = "score", chosen = null;

  const range = (values) => { const flat = values.flat(); return [Math.min(...flat), Math.max(...flat)]; };
  const along = (values, v) => 2 * (v - values[0]) / (values.at(-1) - values[0]) - 1;
  const height = (v) => { const [low, high] = range(data[shown]); return high > low ? 0.9 * (v - low) / (high - low) : 0.45; };
  const words = (v) => shown === "score" ? `${(100 * v).toFixed(1)}%` : v.toPrecision(4);
  const number = (v) => String(Number(v.toPrecision(3))).replace("-", "−");
  const colour = (share) => {
    const at = data.stops.findIndex(([end]) => share <= end + 1e-9), [end, b] = data.stops[Math.max(at, 1)];
    const [start, a] = data.stops[Math.max(at, 1) - 1], part = (share - start) / (end - start);
    return a.map((v, i) => v + part * (b[i] - v));
  };
  // x and y in [-1, 1], z in [0, 0.9]: turned around the upright axis, then tilted; `depth` grows away from the eye
  const project = (x, y, z) => {
    const size = view.zoom * Math.min(canvas.clientWidth / 3.1, canvas.clientHeight / 2.2);
    const right = x * Math.cos(view.turn) - y * Math.sin(view.turn), far = x * Math.sin(view.turn) + y * Math.cos(view.turn);
    const up = far * Math.sin(view.tilt) + (z - 0.4) * Math.cos(view.tilt);
    const depth = far * Math.cos(view.tilt) - (z - 0.4) * Math.sin(view.tilt);
    return {x: canvas.clientWidth / 2 + size * right, y: 0.42 * canvas.clientHeight - size * up, depth};
  };
  const vertex = (i, j) => project(along(data.xs, data.xs[i]), along(data.ys, data.ys[j]), height(data[shown][j][i]));
  const cell = (values, v) => {
    const i = Math.min(Math.max(values.findIndex((end) => end >= v) - 1, 0), values.length - 2);
    return [i, Math.min(Math.max((v - values[i]) / (values[i + 1] - values[i]), 0), 1)];
  };
  const value = (x, y) => {
    const [i, p] = cell(data.xs, x), [j, q] = cell(data.ys, y), v = data[shown];
    return (1 - q) * ((1 - p) * v[j][i] + p * v[j][i + 1]) + q * ((1 - p) * v[j + 1][i] + p * v[j + 1][i + 1]);
  };
  const line = (...points) => { pen.beginPath(); points.forEach((p, i) => pen[i ? "lineTo" : "moveTo"](p.x, p.y)); };
  const label = (text, p) => {  // centred, but never across the edge
    const half = pen.measureText(text).width / 2 + 4;
    pen.textAlign = "center";
    pen.fillText(text, Math.max(half, Math.min(canvas.clientWidth - half, p.x)), p.y);
  };

  const quads = () => {
    const made = [];
    for (let j = 0; j + 1 < data.ys.length; j += 1) for (let i = 0; i + 1 < data.xs.length; i += 1) {
      const ends = [vertex(i, j), vertex(i + 1, j), vertex(i + 1, j + 1), vertex(i, j + 1)];
      const v = data[shown], mean = (v[j][i] + v[j][i + 1] + v[j + 1][i + 1] + v[j + 1][i]) / 4;
      const slope = height(v[j][i + 1]) + height(v[j + 1][i + 1]) - height(v[j][i]) - height(v[j + 1][i]);
      const light = 1 - Math.min(0.28, Math.max(0, slope));
      made.push({ends, depth: ends.reduce((sum, p) => sum + p.depth, 0), fill: colour(height(mean) / 0.9).map((c) => c * light)});
    }
    return made.sort((a, b) => b.depth - a.depth);
  };
  const draw = () => {
    const ratio = window.devicePixelRatio || 1, style = getComputedStyle(figure), ink = style.color;
    const ground = style.backgroundColor;
    canvas.width = Math.round(canvas.clientWidth * ratio); canvas.height = Math.round(canvas.clientHeight * ratio);
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.font = `12px ${getComputedStyle(document.body).fontFamily}`;
    pen.strokeStyle = ink; pen.globalAlpha = 0.35; pen.lineWidth = 1;
    line(project(-1, -1, 0), project(1, -1, 0), project(1, 1, 0), project(-1, 1, 0)); pen.closePath(); pen.stroke();
    pen.globalAlpha = 1;
    quads().forEach(({ends, fill}) => {
      line(...ends); pen.closePath(); pen.fillStyle = `rgb(${fill.map(Math.round)})`; pen.fill();
      pen.strokeStyle = "rgba(0, 0, 0, 0.25)"; pen.lineWidth = 0.6; pen.stroke();
    });
    const pin = (x, y, z, text) => {
      const foot = project(x, y, z), head = {x: foot.x, y: foot.y - 30};
      pen.strokeStyle = ink; pen.lineWidth = 1.5; line(foot, head); pen.stroke();
      pen.beginPath(); pen.arc(foot.x, foot.y, 4, 0, 7); pen.fillStyle = ground; pen.fill(); pen.stroke();
      const wide = pen.measureText(text).width / 2 + 5;
      pen.fillRect(head.x - wide, head.y - 17, 2 * wide, 18); pen.fillStyle = ink; label(text, {x: head.x, y: head.y - 4});
    };
    const cut = (text) => text.length > 28 ? `…${text.slice(-27)}` : text;
    data.models.forEach(([name, x, y]) => pin(along(data.xs, x), along(data.ys, y), height(value(x, y)), cut(name)));
    pen.fillStyle = ink;
    const near = (x, out = 1.14) => project(x, Math.cos(view.turn) > 0 ? -out : out, 0);
    const side = (y, out = 1.14) => project(Math.sin(view.turn) > 0 ? -out : out, y, 0);
    [0, data.xs.length - 1].forEach((i) => label(number(data.xs[i]), near(0.92 * along(data.xs, data.xs[i]))));
    [0, data.ys.length - 1].forEach((j) => label(number(data.ys[j]), side(0.92 * along(data.ys, data.ys[j]))));
    label(`→ ${cut(data.axes[0])}`, near(0, 1.26)); label(`→ ${cut(data.axes[1])}`, side(0, 1.26));
    if (chosen) {
      const [i, j] = chosen, p = vertex(i, j);
      pen.beginPath(); pen.arc(p.x, p.y, 6, 0, 7); pen.strokeStyle = ink; pen.lineWidth = 2.5; pen.stroke();
      readout.textContent = `${number(data.xs[i])}, ${number(data.ys[j])}: ${words(data[shown][j][i])}`;
    }
  };
  const turn = (dx, dy) => { view.turn += dx; view.tilt = Math.min(1.45, Math.max(0.05, view.tilt + dy)); draw(); };
  const zoom = (factor) => { view = factor ? {...view, zoom: Math.min(5, Math.max(0.5, view.zoom * factor))} : {...START}; draw(); };
  const walk = (dx, dy) => {
    const [i, j] = chosen || [data.xs.length >> 1, data.ys.length >> 1], inside = (v, n) => Math.min(Math.max(v, 0), n - 1);
    chosen = [inside(i + dx, data.xs.length), inside(j + dy, data.ys.length)]; draw();
  };
  const point = (event) => {
    const box = canvas.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
    let best = 30 ** 2, found = null;
    data.ys.forEach((_, j) => data.xs.forEach((__, i) => {
      const p = vertex(i, j), off = (p.x - x) ** 2 + (p.y - y) ** 2;
      if (off < best) { best = off; found = [i, j]; }
    }));
    if (found) { chosen = found; draw(); }
  };
  const fingers = new Map();
  const spread = () => { const [a, b] = [...fingers.values()]; return Math.hypot(a[0] - b[0], a[1] - b[1]); };
  canvas.addEventListener("pointerdown", (event) => { fingers.set(event.pointerId, [event.clientX, event.clientY]); canvas.setPointerCapture(event.pointerId); });
  ["pointerup", "pointercancel"].forEach((name) => canvas.addEventListener(name, (event) => fingers.delete(event.pointerId)));
  canvas.addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId);
    if (!before) { point(event); return; }
    const wide = fingers.size === 2 ? spread() : 0;
    fingers.set(event.pointerId, [event.clientX, event.clientY]);
    if (wide) zoom(spread() / wide); else turn(0.008 * (event.clientX - before[0]), 0.008 * (event.clientY - before[1]));
  });
  canvas.addEventListener("wheel", (event) => { if (event.ctrlKey) { event.preventDefault(); zoom(event.deltaY < 0 ? 1.1 : 1 / 1.1); } }, {passive: false});
  const KEYS = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1]};
  canvas.addEventListener("keydown", (event) => {
    const step = KEYS[event.key];
    if (step && event.shiftKey) walk(...step); else if (step) turn(0.12 * step[0], 0.08 * step[1]);
    else if (event.key === "+" || event.key === "=") zoom(1.15); else if (event.key === "-") zoom(1 / 1.15); else return;
    event.preventDefault();
  });
  figure.querySelectorAll("[data-zoom]").forEach((button) => button.addEventListener("click", () => zoom(Number(button.dataset.zoom))));
  figure.querySelectorAll("[data-show]").forEach((button) => button.addEventListener("click", () => {
    shown = button.dataset.show;
    figure.querySelectorAll("[data-show]").forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
    draw();
  }));
  window.addEventListener("resize", draw);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  new MutationObserver(draw).observe(document.documentElement, {attributeFilter: ["data-theme"]});
  draw();
})();
