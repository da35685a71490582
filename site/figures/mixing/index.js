/**
 * The mixing board: four adapters on one base, each with a fader. The answer and each task's score follow the faders.
 * Chapter 11 has the arithmetic; the model runs in this page.
 */
import { answerField, any, choice, fresh, h, json, known, later, latest, model, promptField, sentence, signed, spoken, styles, urlState } from "../common/dom.js";

const TASKS = [
  { name: "sentiment", text: "sentiment" },
  { name: "translation", text: "French" },
  { name: "summarization", text: "moral" },
  { name: "style", text: "pirate" },
];
const WAYS = {
  cat: { text: "cat", says: "cat: the updates are added up exactly; the ranks add up too." },
  linear: { text: "linear", says: "linear: the A's and the B's are added up, so cross terms appear that nobody trained." },
  ties: { text: "TIES", says: "TIES: half of each factor's entries stay, the largest; then each place votes for a sign." },
  dare_linear: { text: "DARE", says: "DARE: half of each factor's entries are dropped at random, the others doubled; then as linear." },
  svd: { text: "SVD", says: "SVD: the exact sum, cut to rank 16: to its largest singular directions." },
};
const DENSITY = 0.5, SEED = 0;

/** The faders that don't stand at 0: with one of them alone every way but TIES and DARE gives that adapter itself. */
const wanted = (state) => TASKS.filter(({ name }) => state[name] !== 0).map(({ name }) => ({ name, weight: state[name] }));
const mix = (state) => ({ adapters: wanted(state), combine: state.how, density: DENSITY, seed: SEED });

/** @param {HTMLElement} root @param {{base?: string}} [options] `base`: the URL of the model's folder */
export async function mount(root, options = {}) {
  /** @type {[Record<string, {prompt: string, answer: string}[]>, any]} */
  const [examples] = await Promise.all([json("examples.json", import.meta.url), styles(import.meta.url)]);
  const client = model(options);
  const url = urlState("mixing", { sentiment: 0, translation: 0, summarization: 0, style: 1, how: "cat", prompt: examples.style[0].prompt });
  let state = url.read();

  const live = spoken();
  const tries = TASKS.map(({ name, text }) => h("button", { type: "button", onclick: () => change({ prompt: any(examples[name]).prompt }) }, text));
  const prompt = promptField((text) => change({ prompt: text }), h("span", { class: "figure-muted" }, "one of:"), ...tries);
  const answer = answerField("mixing-answer", live), base = h("p", { class: "figure-muted" });
  const says = h("p", { class: "figure-muted" });
  const channels = TASKS.map((task) => channel(task, examples[task.name].length, (weight) => change({ [task.name]: weight })));
  const how = choice("Combined by", Object.entries(WAYS).map(([value, { text }]) => ({ value, text })), state.how, (value) => change({ how: value }));
  const zero = h("button", { type: "button", onclick: () => change(Object.fromEntries(TASKS.map(({ name }) => [name, 0]))) }, "all to 0");
  const share = h("button", { type: "button", onclick: () => change({ sentiment: 0.5, translation: 0, summarization: 0, style: 0.5, how: "cat" }) }, "two at one half");

  const board = h("div", { class: "mixing figure-columns" },
    h("div", { class: "figure-left" },
      h("div", { class: "mixing-board", role: "group", "aria-label": "Weights of the four adapters" }, ...channels.map((own) => own.element)),
      h("div", { class: "figure-buttons" }, zero, share),
      h("p", { class: "figure-muted" }, `Lights: right answers to ${examples.style.length} held-out prompts. Log p: the right answers' mean log-probability a token; below the base's, the task is unlearned.`)),
    h("div", { class: "figure-right" },
      h("div", { class: "mixing-prompt" }, ...prompt.parts),
      h("div", { class: "mixing-answers" }, h("span", { class: "figure-label" }, "The mixture answers"), answer.element, base),
      h("div", {}, how.element, says),
      live.element));
  root.replaceChildren(h("div", { class: "figure-body" }, board));

  const tell = () => {
    const mixed = wanted(state).map(({ name, weight }) => `${TASKS.find((task) => task.name === name).text} ${signed(weight)}`);
    const scores = channels.map((own, i) => own.said && `${TASKS[i].text} ${own.said}`).filter(Boolean);
    live.say(`${mixed.length ? `${mixed.join(", ")}, by ${WAYS[state.how].text}` : "All faders at 0: the base"}. The answer: ${sentence(answer.element.textContent || "nothing")}${scores.length ? ` Right: ${scores.join(", ")}.` : ""}`);
  };

  const rewrite = latest(async (signal) => {
    await answer.ask(client, state.prompt, { ...mix(state), signal });
    tell();
  }, answer.failed);

  let asked = null;
  const compare = latest(async (signal) => {
    if (asked === state.prompt) return;
    base.textContent = "The base alone: …";
    const { prompt: own } = state;
    const text = await client.answer(own, { signal });
    [asked, base.textContent] = [own, `The base alone: ${text.trim()}`];
  }, () => {});

  let bases;
  const score = latest(async (signal) => {
    const all = (options) => TASKS.map(({ name }, i) => client.score(examples[name], { ...options, signal, onToken: options.show && ((part) => channels[i].show(part, bases?.[i])) }));
    channels.forEach((own) => own.wait());
    bases ??= (await Promise.all(all({}))).map(({ logProb }) => logProb);
    const done = await Promise.all(all({ ...mix(state), show: true }));
    done.forEach((part, i) => channels[i].show(part, bases[i], true));
    board.dataset.scored = JSON.stringify(done.map(({ right, logProb }) => [right, Number(logProb.toFixed(4))]));
    tell();
  }, answer.failed);
  const scoreLater = later(score, 350), compareLater = later(compare, 350);

  /** Shows the state and asks anew what depends on it. */
  function show(changed) {
    prompt.set(state.prompt);
    TASKS.forEach(({ name }, i) => channels[i].set(state[name]));
    how.set(state.how);
    says.textContent = WAYS[state.how].says;
    rewrite();
    compareLater();
    if (changed.some((key) => key !== "prompt")) {
      delete board.dataset.scored;
      channels.forEach((own) => own.wait());
      scoreLater();
    }
  }
  function change(update) {
    state = { ...state, ...update };
    url.write(state);
    show(Object.keys(update));
  }
  const sane = () => {
    state = url.read();
    if (!known(WAYS, state.how)) state.how = "cat";
    for (const { name } of TASKS) state[name] = Math.min(2, Math.max(-1, state[name]));
    show(Object.keys(state));
  };
  url.follow(sane);
  sane(); // the model is asked at once, and answers when it is there
  await client.ready.catch(answer.failed);
}

/** One adapter's strip of the board: fader, weight and score. */
function channel({ name, text }, count, moved) {
  const id = fresh(name);
  const fader = h("input", { type: "range", id, min: -1, max: 2, step: 0.05, "data-task": name, oninput: () => moved(Number(fader.value)) });
  const value = h("output", { for: id });
  const lights = Array.from({ length: count }, () => h("span"));
  const right = h("span", { class: "figure-number" }), likely = h("small", { class: "figure-number" });
  const score = h("div", { class: "mixing-score" }, h("div", { class: "mixing-lights", "aria-hidden": "true" }, ...lights), right, likely);
  const marks = h("div", { class: "mixing-marks", "aria-hidden": "true" }, ...["2", "1", "0", "−1"].map((mark) => h("span", {}, mark)));
  const element = h("div", { class: "mixing-channel" }, h("label", { for: id }, text), value, h("div", { class: "mixing-slot" }, fader, marks), score);
  return {
    element,
    said: "",
    set(weight) {
      fader.value = weight;
      fader.style.setProperty("--weight", weight);
      value.textContent = signed(weight);
      fader.setAttribute("aria-valuetext", signed(weight));
    },
    wait() {
      this.said = "";
      score.style.opacity = "0.45";
    },
    /** @param {{right: number, total: number, logProb: number}} part @param {number} [base] @param {boolean} [done] */
    show({ right: good, total, logProb }, base, done = false) {
      lights.forEach((light, i) => light.classList.toggle("on", i < good));
      right.textContent = `${good} of ${total}`;
      likely.replaceChildren(`log p ${signed(logProb, 1)}`, h("br"), base === undefined ? "" : `base ${signed(base, 1)}`);
      if (done) this.said = `${good} of ${total}`;
      score.style.opacity = "1";
    },
  };
}
