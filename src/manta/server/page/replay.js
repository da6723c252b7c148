"use strict";
// Draws a text as it emerged: frame after frame, with a slider. The page uses it, and so does an exported replay.

/** How a piece of a text is coloured: its confidence in tenths; not at all where nobody knows it. */
function levelOf(chance) {
  if (chance === null) return "c9";
  return "c" + Math.max(0, Math.min(9, Math.floor(chance * 10)));
}

/** Put the words of a frame into an element; words are [text or null, confidence]. */
function drawFrame(canvas, frame) {
  const pieces = frame.words.map(([said, chance], place) => {
    const piece = document.createElement("span");
    piece.className = said === null ? "word open" : "word " + levelOf(chance);
    piece.textContent = said === null ? "·" : place ? said : said.replace(/^ /, "");
    piece.title = said === null ? "no word yet" : chance === null ? "" : Math.round(chance * 100) + "% sure";
    return piece;
  });
  canvas.replaceChildren(...pieces);
}

/** A curve of mean confidence over the frames, as SVG. */
function drawCurve(svg, frames) {
  const at = (k) => (frames.length > 1 ? (100 * k) / (frames.length - 1) : 50).toFixed(2);
  const points = frames.map((frame, k) => `${at(k)},${(29 - 28 * frame.confidence).toFixed(2)}`).join(" ");
  svg.setAttribute("viewBox", "0 0 100 30");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", "mean confidence from call to call");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
  line.setAttribute("points", points);
  line.setAttribute("fill", "none");
  line.setAttribute("stroke", "currentColor");
  line.setAttribute("stroke-width", "1.5");
  line.setAttribute("vector-effect", "non-scaling-stroke");
  svg.replaceChildren(line);
}

/** A text with its slider: returns what adds frames and what shows the last of them. */
function makeReplay(title) {
  const made = (tag, name, text) => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    if (text) element.textContent = text;
    return element;
  };
  const root = made("article", "result"), frames = [];
  const canvas = made("p", "canvas"), facts = made("p", "facts");
  const curve = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  curve.setAttribute("class", "curve");
  const scrub = made("div", "scrub"), play = made("button", "", "Play"), told = made("output");
  const slider = made("input");
  play.type = "button";
  play.setAttribute("aria-label", `Play how ${title} wrote`);
  Object.assign(slider, { type: "range", min: 0, max: 0, step: 1, value: 0 });
  slider.setAttribute("aria-label", `Network call of ${title}`);
  scrub.hidden = true;
  scrub.append(play, slider, told);
  root.append(made("h2", "", title), canvas, facts, curve, scrub);

  const show = (k) => {
    const frame = frames[k];
    drawFrame(canvas, frame);
    const calls = frame.step + (frame.step === 1 ? " call" : " calls");
    told.textContent = frame.t === null ? calls : `${calls}, t = ${frame.t.toFixed(2)}`;
    slider.setAttribute("aria-valuetext", told.textContent);
    slider.value = k;
  };
  let timer = 0;
  const halt = () => {
    clearInterval(timer);
    timer = 0;
    play.textContent = "Play";
  };
  play.addEventListener("click", () => {
    if (timer) return halt();
    let k = 0;
    show(0);
    play.textContent = "Pause";
    timer = setInterval(() => {
      k += 1;
      if (k >= frames.length) return halt();
      show(k);
    }, Math.max(60, Math.min(400, 4000 / frames.length)));
  });
  slider.addEventListener("input", () => {
    halt();
    show(Number(slider.value));
  });
  return {
    root,
    frames,
    facts,
    add(frame) {
      frames.push(frame);
      slider.max = frames.length - 1;
      scrub.hidden = frames.length < 2;
      if (!timer) show(frames.length - 1);
      drawCurve(curve, frames);
    },
  };
}

/** Show a saved replay, where this script stands in one. */
function showSaved() {
  const saved = document.getElementById("replay-data");
  if (!saved) return;
  for (const text of JSON.parse(saved.textContent)) {
    const replay = makeReplay(text.title);
    text.frames.forEach((frame) => replay.add(frame));
    replay.facts.textContent = text.facts;
    document.getElementById("results").append(replay.root);
  }
}
showSaved();
