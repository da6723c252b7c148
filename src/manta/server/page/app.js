"use strict";
// The page: asks the server it came from, and nobody else.

const $ = (id) => document.getElementById(id);
const TASKS = {
  write: {
    go: "Write",
    hint: "A text that answers the prompt.",
    prompt: "name[Blue Spice], eatType[coffee shop], area[city centre]",
    path: "/v1/completions",
    can: () => true,
  },
  fill: {
    go: "Fill",
    hint: "A text with blanks: ___ for up to 8 tokens, ___{n} for up to n. The words around a blank are seen on both sides.",
    prompt: "name[The Mill], eatType[pub], food[Italian], near[Raja Indian Cuisine]",
    text: "The ___ is near ___, and it ___.",
    path: "/v1/infill",
    can: (model) => model.manta.fills,
  },
  edit: {
    go: "Edit",
    hint: "A text to change, or [[words]] of it. The rest stands as it is.",
    prompt: "name[The Mill], eatType[pub], priceRange[high]",
    text: "The Mill is a [[cheap pub]] by the river.",
    path: "/v1/edit",
    can: (model) => model.manta.changes,
  },
  diagnose: {
    go: "Diagnose",
    hint: "Why does the model fail where it fails? It is watched writing in a process of its own: a minute or more. Two prompts or more, one a line; without any it takes some of its own data.",
    can: (model) => model.manta.diagnosed,
  },
};
let models = [], task = "write", leaving = null, written = [];

/** Ask the server; asks for a key where it wants one. */
async function ask(path, body, signal, method = body === undefined ? "GET" : "POST") {
  for (;;) {
    const headers = { "content-type": "application/json" };
    const key = sessionStorage.getItem("manta-key");
    if (key) headers.authorization = `Bearer ${key}`;
    const answer = await fetch(path, { method, headers, signal, body: JSON.stringify(body) });
    if (answer.ok) return answer;
    if (answer.status !== 401) throw new Error(await wrong(answer));
    await askKey();
  }
}

async function wrong(answer) {
  try {
    return (await answer.json()).error.message;
  } catch {
    return `the server answered ${answer.status}`;
  }
}

function askKey() {
  return new Promise((resolve, reject) => {
    const dialog = $("key-dialog");
    dialog.returnValue = "";
    dialog.addEventListener("close", () => {
      const key = $("key").value.trim();
      $("key").value = "";
      if (dialog.returnValue !== "ok" || !key) return reject(new Error("This server asks for a key."));
      if (!/^[\x21-\x7e]+$/.test(key)) return reject(new Error("A key has no such characters."));
      sessionStorage.setItem("manta-key", key);
      resolve();
    }, { once: true });
    dialog.showModal();
  });
}

function say(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
}

/** Who may write: each model, and its left-to-right road where it has one beside its own. */
function voicesOf(model) {
  const decoder = model.manta.options.find((option) => option.name === "decoder");
  const name = `${model.id} (${model.manta.kind.replace(/s$/, "")})`;
  const voices = [{ model, name, options: {} }];
  if (model.manta.family === "aligned" && decoder.choices.includes("sequential"))
    voices.push({ model, name: `${model.id}, left to right`, options: { decoder: "sequential" }, without: ["num_steps"], filler: false });
  return voices;
}

function showVoices() {
  const before = new Set(chosen().map((voice) => voice.name));
  const fitting = models.filter(TASKS[task].can).flatMap(voicesOf);
  const voices = fitting.filter((voice) => task === "write" || voice.filler !== false);
  const several = task !== "diagnose";
  const kept = voices.some((voice) => before.has(voice.name));
  const labels = voices.map((voice, place) => {
    const label = document.createElement("label"), box = document.createElement("input");
    Object.assign(box, { type: several ? "checkbox" : "radio", name: "voice" });
    box.checked = several ? (kept ? before.has(voice.name) : task === "write" || place === 0) : place === 0;
    box.voice = voice;
    box.addEventListener("change", showOptions);
    label.append(box, voice.name);
    return label;
  });
  const legend = $("voices").firstElementChild;
  $("voices").replaceChildren(legend, ...labels);
  if (!labels.length) $("voices").append("No model of this server can.");
  $("go").disabled = !labels.length;
  showOptions();
}

function chosen() {
  return [...$("voices").querySelectorAll("input:checked")].map((box) => box.voice);
}

/** Options that every chosen model follows. */
function showOptions() {
  const lists = chosen().map((voice) => voice.model.manta.options.filter((option) => !(option.name in voice.options)));
  const common = (lists[0] || []).filter(
    (option) => option.name !== "strength" && lists.every((list) => list.some((other) => other.name === option.name)));
  const values = Object.fromEntries([...$("options").querySelectorAll("[name]")].map((field) => [field.name, field.value]));
  $("options").replaceChildren(...(task === "diagnose" ? [] : common).map((option) => {
    const label = document.createElement("label"), shown = option.default === null ? "its own" : String(option.default);
    const field = document.createElement(option.choices ? "select" : "input");
    if (option.choices) {
      field.append(new Option(option.default ? `${option.default} (usual)` : "its own", ""));
      option.choices.filter((choice) => choice && choice !== option.default).forEach((choice) => field.append(new Option(choice, choice)));
    } else {
      field.placeholder = shown;
      if (option.type !== "str") Object.assign(field, { type: "number", step: option.type === "int" ? 1 : "any", min: option.least ?? "" });
    }
    field.name = option.name;
    field.dataset.type = option.type;
    if (values[option.name]) field.value = values[option.name];
    field.addEventListener("focus", () => { $("option-help").textContent = `${option.name}: ${option.help}`; });
    label.append(option.name.replaceAll("_", " "), field);
    return label;
  }));
}

function asked(voice) {
  const body = { model: voice.model.id, stream: true, diffusing: true, ...voice.options };
  for (const field of $("options").querySelectorAll("[name]")) {
    const value = field.value.trim();
    if (value && !(voice.without || []).includes(field.name)) {
      const kind = field.dataset.type;
      body[field.name] = ["int", "float"].includes(kind) ? Number(value) : kind === "bool" ? value === "true" : value;
    }
  }
  if ($("seed").value) body.seed = Number($("seed").value);
  if ($("prompt").value.trim() && voice.model.manta.prompted !== false) body.prompt = $("prompt").value.trim();
  if (task !== "write") body.text = $("text").value;
  if (task === "edit") body.strength = Number($("strength").value);
  return body;
}

/** The events of a stream, as objects. */
async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const parts = held.split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

const count = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;

async function write(voice, replay, signal) {
  const answer = await ask(TASKS[task].path, asked(voice), signal);
  let text = "", why = null, seed = null;
  for await (const event of events(answer)) {
    if (event.error) throw new Error(event.error.message);
    if (event.type === "diffusion_frame") {
      const { step, t, confidence, words } = event;
      replay.add({ step, t, confidence, words });
    }
    const choice = event.choices[0];
    if (choice && choice.text) text += choice.text;
    if (choice && choice.manta) [seed, why] = [choice.manta.seed, choice.finish_reason];
    if (event.usage) {
      const words = text.split(/\s+/).filter(Boolean).length, { network_calls: calls, seconds } = event.usage;
      const sure = replay.frames.at(-1)?.confidence ?? -1; // below 0 it is no chance, but an entropy or nothing
      const facts = [...(sure < 0 ? [] : [`${Math.round(100 * sure)}% sure`]), count(calls, "call"), `${seconds.toFixed(3)} s`, `${(words / seconds).toFixed(0)} words a second`, `seed ${seed}`];
      if (why === "length") facts.push("cut at its greatest length");
      replay.facts.textContent = facts.join(" · ");
    }
  }
  const last = replay.frames.at(-1);
  // The finished text as it is told, infilled or edited text and white space included.
  if (last) replay.add({ ...last, words: pieces(text, last.words) });
  return { title: voice.name, frames: replay.frames, facts: replay.facts.textContent, text };
}

/** The words of a finished text, coloured as far as they are the last frame's. */
function pieces(text, words) {
  const said = words.filter(([word]) => word !== null), joined = said.map(([word]) => word).join("");
  const start = joined.indexOf(text.trim());
  if (start < 0) return [[text, null]];
  let at = 0;
  const kept = said.map(([word, chance]) => {
    const from = Math.max(start, at), to = Math.min(start + text.trim().length, at + word.length);
    at += word.length;
    return [from < to ? joined.slice(from, to) : "", chance];
  });
  return kept.filter(([word]) => word);
}

async function run() {
  if (leaving) return;
  const voices = chosen();
  if (!voices.length) return say("Choose who writes.", true);
  leaving = new AbortController();
  $("go").setAttribute("aria-disabled", "true"); // and keeps the focus
  $("halt").disabled = false;
  try {
    if (task === "diagnose") await diagnose(voices[0], leaving.signal);
    else await writeAll(voices, leaving.signal);
  } catch (error) {
    say(error.name === "AbortError" ? "Stopped." : error.message, error.name !== "AbortError");
  } finally {
    leaving = null;
    $("go").removeAttribute("aria-disabled");
    $("halt").disabled = true;
  }
}

async function writeAll(voices, signal) {
  written = [];
  $("save").hidden = true;
  $("results").replaceChildren();
  $("diagnosis").hidden = true;
  for (const voice of voices) { // one after the other: none slows another down
    say(`${voice.name} writes …`);
    const replay = makeReplay(voice.name);
    $("results").append(replay.root);
    try {
      written.push(await write(voice, replay, signal));
    } catch (error) {
      if (error.name === "AbortError") throw error;
      replay.facts.textContent = error.message;
    }
  }
  if (!written.length) return say("Nothing was written.", true);
  say("Done.");
  $("read").textContent = written.map(({ title, text }) => `${title}: ${text}`).join(" "); // to whoever listens
  $("save").hidden = false;
}

/** One HTML file that replays what was written, wherever it is opened. */
async function exportReplay() {
  const [style, script] = await Promise.all(["style.css", "replay.js"].map(async (path) => (await ask(path)).text()));
  const data = JSON.stringify(written).replaceAll("<", "\\u003c");
  const page = [
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>Replay, manta</title>',
    `<style>\n${style}</style>\n</head>\n<body>\n<header><h1>manta</h1><p>How these texts emerged</p></header>`,
    `<main><section id="results"></section></main>\n<script type="application/json" id="replay-data">${data}</` + "script>",
    `<script>\n${script}</` + "script>\n</body>\n</html>\n",
  ].join("\n");
  download(new Blob([page], { type: "text/html" }), "manta-replay.html");
}

function download(blob, name) {
  const link = document.createElement("a");
  Object.assign(link, { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

async function diagnose(voice, signal) {
  const prompts = $("prompt").value.split("\n").map((line) => line.trim()).filter(Boolean);
  const begun = await (await ask("/v1/diagnoses", { model: voice.model.id, prompts }, signal)).json();
  signal.addEventListener("abort", () => ask(`/v1/diagnoses/${begun.id}`, undefined, undefined, "DELETE").catch(() => {}));
  $("results").replaceChildren();
  $("diagnosis").hidden = false;
  $("diagnosis-page").hidden = $("diagnosis-save").hidden = true;
  for (;;) {
    const found = await (await ask(`/v1/diagnoses/${begun.id}`, undefined, signal)).json();
    $("diagnosis-lines").replaceChildren(...found.lines.map((line) => {
      const item = document.createElement("li");
      item.textContent = line;
      return item;
    }));
    if (found.state === "failed") throw new Error(found.lines.at(-1) || "the diagnosis failed");
    if (found.state === "done") break;
    say(`Diagnosing ${voice.model.id} …`);
    await new Promise((resolve) => setTimeout(resolve, 500));
  }
  const page = await (await ask(`/v1/diagnoses/${begun.id}/page`, undefined, signal)).text();
  $("diagnosis-page").srcdoc = page;
  $("diagnosis-page").hidden = $("diagnosis-save").hidden = false;
  $("diagnosis-save").onclick = () => download(new Blob([page], { type: "text/html" }), "diagnosis.html");
  say("Done.");
}

function choose(name, focus = false) {
  const keep = { prompt: $("prompt").value, text: $("text").value }, old = TASKS[task];
  task = name;
  const { go, hint, prompt, text } = TASKS[name];
  for (const tab of document.querySelectorAll("[role=tab]")) {
    const on = tab.dataset.task === name;
    tab.setAttribute("aria-selected", on);
    tab.tabIndex = on ? 0 : -1;
    if (on) $("panel").setAttribute("aria-labelledby", tab.id);
    if (on && focus) tab.focus();
  }
  $("go").textContent = go;
  $("hint").textContent = hint;
  $("prompt-label").textContent = name === "diagnose" ? "Prompts, one a line" : "Prompt";
  $("text-part").hidden = text === undefined;
  $("strength-part").hidden = name !== "edit";
  $("more").hidden = name === "diagnose";
  // What somebody has typed stays; an example gives way to the next.
  if (keep.prompt === (old.prompt || "") || !keep.prompt) $("prompt").value = prompt || "";
  if (keep.text === (old.text || "") || !keep.text) $("text").value = text || "";
  showVoices();
}

function listen() {
  $("task").addEventListener("submit", (event) => { event.preventDefault(); run(); });
  $("halt").addEventListener("click", () => leaving && leaving.abort());
  $("save").addEventListener("click", exportReplay);
  $("strength").addEventListener("input", () => { $("strength-value").value = Number($("strength").value).toFixed(2); });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) run();
    if (event.key === "Escape" && leaving) leaving.abort();
  });
  const tabs = [...document.querySelectorAll("[role=tab]")];
  tabs.forEach((tab, place) => {
    tab.addEventListener("click", () => choose(tab.dataset.task));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step) choose(tabs[(place + step + tabs.length) % tabs.length].dataset.task, true);
    });
  });
}

async function begin() {
  listen();
  try {
    models = (await (await ask("/v1/models")).json()).data;
  } catch (error) {
    return say(error.message, true);
  }
  const size = ({ manta: { parameters } }) => (parameters === null ? "" : ` (${(parameters / 1e6).toFixed(1)}M parameters)`);
  $("about").textContent = `Texts that emerge whole, in a few network calls. Here: ${models.map((model) => model.id + size(model)).join(", ")}.`;
  // The examples are for the models that ship; another model's prompts are its owner's.
  if (!models.every((model) => model.id.startsWith("builtin:e2e"))) {
    for (const known of Object.values(TASKS)) {
      if (known.prompt) known.prompt = "";
      if (known.text) known.text = "";
    }
  }
  choose("write");
}
begin();
