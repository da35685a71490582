/** What the figures share: elements, controls with labels, state in the URL, what a screen reader is told, the model. */
import { Client } from "../../engine/client.js";

/**
 * An element with its attributes and contents; `on...` is a listener.
 *
 * @param {string} tag @param {Record<string, any>} [attributes] @param {...(Node | string)} contents
 * @returns {any}
 */
export function h(tag, attributes = {}, ...contents) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== undefined) element.setAttribute(name, String(value));
  }
  element.append(...contents);
  return element;
}

/** An SVG element with its attributes and text. @param {string} tag @param {Record<string, string | number>} [attributes] @param {string} [text] */
export function s(tag, attributes = {}, text = "") {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  element.textContent = text;
  return element;
}

/** Loads a figure's two style sheets, common.css and its own, once, and waits for them. @param {string} own its module's URL */
export function styles(own) {
  const urls = [new URL("common.css", import.meta.url), new URL("style.css", own)];
  return Promise.all(urls.map(({ href }) => {
    if ([...document.querySelectorAll("link[rel=stylesheet]")].some((link) => link.href === href)) return undefined;
    return new Promise((resolve) => {
      document.head.append(h("link", { rel: "stylesheet", href, onload: resolve, onerror: resolve }));
    });
  }));
}

/** What a JSON file beside a figure's module holds. @param {string} file @param {string} own its module's URL */
export const json = async (file, own) => (await fetch(new URL(file, own))).json();

/** One of several, at random. @template T @param {T[]} several @returns {T} */
export const any = (several) => several[Math.floor(Math.random() * several.length)];

/** Whether a table has an entry of this name. `in` would find "constructor" too. @param {object} table @param {string} name */
export const known = (table, name) => Object.hasOwn(table, name);

let made = 0;
/** An id that no other element of the page has. */
export const fresh = (name) => `figure-${name}-${++made}`;

/**
 * One of several, as buttons: a group of radio buttons, so that arrow keys work.
 *
 * @param {string} legend @param {{value: string, text: string}[]} choices @param {string} value
 * @param {(value: string) => void} changed
 */
export function choice(legend, choices, value, changed) {
  const group = fresh("choice");
  const inputs = choices.map((own) => h("input", { type: "radio", name: group, value: own.value, id: fresh("radio") }));
  inputs.forEach((input) => input.addEventListener("change", () => changed(input.value)));
  const parts = inputs.flatMap((input, i) => [input, h("label", { for: input.id }, choices[i].text)]);
  const element = h("fieldset", { class: "figure-choice" }, h("legend", {}, legend), h("div", {}, ...parts));
  const set = (wanted) => inputs.forEach((input) => (input.checked = input.value === wanted));
  set(value);
  return { element, set };
}

/**
 * A labelled slider and its value: three parts for the grid `.figure-sliders`.
 *
 * @param {string} text @param {string} name @param {{min: number, max: number, step: number}} range
 * @param {(value: number) => void} moved
 */
export function slider(text, name, range, moved) {
  const id = fresh(name);
  const input = h("input", { type: "range", id, name, ...range, oninput: () => moved(Number(input.value)) });
  const output = h("output", { for: id });
  return {
    parts: [h("label", { for: id }, text), input, output],
    /** @param {number} value @param {string} said */
    set(value, said) {
      input.value = value;
      output.textContent = said;
    },
  };
}

/**
 * A slider and a field for the same number.
 *
 * @param {string} text @param {{min: number, max: number, step: number}} range the slider's
 * @param {(step: number) => void} slid @param {(value: number) => void} typed
 * @param {(value: number) => string} [said] how the slider's value is read out
 */
export function control(text, range, slid, typed, said = String) {
  const id = fresh("control");
  const slider = h("input", { type: "range", id, ...range, oninput: () => slid(Number(slider.value)) });
  const field = h("input", { type: "number", step: "any", "aria-label": `${text}, as a number`, onchange: () => {
    const value = field.valueAsNumber;
    if (Number.isFinite(value)) typed(value);
    else field.value = field.dataset.shown;
  } });
  return {
    element: h("div", { class: "figure-control" }, h("label", { class: "figure-label", for: id }, text), h("div", {}, slider, field)),
    /** @param {number} value @param {number} step */
    show(value, step) {
      slider.value = step;
      slider.setAttribute("aria-valuetext", said(value));
      field.value = field.dataset.shown = String(value);
    },
  };
}

/**
 * The reader's prompt: a field with its label, and under it what fills it by a press.
 *
 * @param {(prompt: string) => void} changed @param {...(Node | string)} tries @returns {{parts: Node[], set: (prompt: string) => void}}
 */
export function promptField(changed, ...tries) {
  const input = h("textarea", { rows: 2, id: fresh("prompt"), spellcheck: "false", maxlength: 400, oninput: () => changed(input.value) });
  const set = (prompt) => {
    if (input.value !== prompt) input.value = prompt;
  };
  return { parts: [h("label", { class: "figure-label", for: input.id }, "Your prompt"), input, h("div", { class: "figure-buttons" }, ...tries)], set };
}

/**
 * Where the model's answer is written, or why there is none.
 *
 * @param {string} name its class @param {{say: (text: string) => void}} live
 */
export function answerField(name, live) {
  const element = h("p", { class: `figure-answer ${name}` }, "Loading the model (3.6 MB) …");
  return {
    element,
    /** Has the model answer, and shows it word by word. @param {any} client @param {string} prompt @param {object} options */
    async ask(client, prompt, options) {
      element.dataset.busy = "yes";
      const text = await client.answer(prompt, { ...options, onToken: (part) => (element.textContent = part.trim()) });
      element.textContent = text.trim() || "(nothing: the end-of-turn token came first)";
      element.dataset.busy = "no";
    },
    /** @param {Error} error */
    failed(error) {
      element.replaceChildren(h("span", { class: "figure-error" }, error.message));
      element.dataset.busy = "no";
      live.say(`There is no answer: ${error.message}`);
    },
  };
}

/** A text that a screen reader reads out when it has stood still for a moment. */
export function spoken() {
  const element = h("p", { class: "figure-spoken", role: "status", "aria-live": "polite" });
  let timer;
  return {
    element,
    say(text) {
      clearTimeout(timer);
      timer = setTimeout(() => (element.textContent = text), 700);
    },
  };
}

/** A function that runs once `ms` have passed without another call. */
export function later(run, ms) {
  let timer;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(run, ms, ...values);
  };
}

/**
 * The figure's state in the URL, as `#mixing?style=1&how=cat`: only what differs from its start. Another hash is the
 * page's own and is left alone until a control is moved.
 *
 * @param {string} name @param {Record<string, string | number>} start
 */
export function urlState(name, start) {
  const read = () => {
    const [own, ...query] = location.hash.slice(1).split("?");
    if (own !== name) return { ...start };
    const given = new URLSearchParams(query.join("?")); // decodes; what it can't decode it leaves as it is
    const found = [...given].filter(([key]) => known(start, key));
    const read = found.map(([key, value]) => [key, typeof start[key] === "number" ? Number(value) : value]);
    return { ...start, ...Object.fromEntries(read.filter(([, value]) => !Number.isNaN(value))) };
  };
  const write = later((state) => {
    const changed = Object.entries(state).filter(([key, value]) => value !== start[key]);
    const query = new URLSearchParams(changed.map(([key, value]) => [key, String(value)]));
    history.replaceState(history.state, "", `#${name}${changed.length ? `?${query}` : ""}`);
  }, 250);
  /** Calls when another state of this figure is put into the address. @param {() => void} changed */
  const follow = (changed) => addEventListener("hashchange", () => location.hash.slice(1).split("?")[0] === name && changed());
  return { read, write, follow };
}

let client;
/** The page's one model, which all its figures ask. @param {{base?: string}} options */
export function model({ base } = {}) {
  client ??= new Client({ base: base ?? new URL("../../assets/tiny-llama/", import.meta.url).href });
  return client;
}

/**
 * Asks again whenever something changes: what was asked before is cancelled, and its answer never arrives.
 *
 * @param {(signal: AbortSignal) => Promise<void>} ask @param {(error: Error) => void} failed
 */
export function latest(ask, failed) {
  let controller = new AbortController();
  return async () => {
    controller.abort();
    const { signal } = (controller = new AbortController());
    try {
      await ask(signal);
    } catch (error) {
      if (!signal.aborted) failed(error);
    }
  };
}

/** 1 as "1.00", -0.5 as "−0.50": a true minus sign, and none before zero. */
export const signed = (value, digits = 2) => value.toFixed(digits).replace(/^-(?=0\.?0*$)/, "").replace("-", "−");

/** A text with a full stop at its end, if nothing else ends it. @param {string} text */
export const sentence = (text) => (/[.!?…]["'”’)]*$/.test(text) ? text : `${text}.`);
