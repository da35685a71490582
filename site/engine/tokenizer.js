/**
 * Byte-level BPE, as in GPT-2 and Llama 3: a text's UTF-8 bytes are the first symbols, and the pair that was learnt
 * earliest is merged until no pair is left that was learnt. So every text has ids, and they give the same text again.
 */

/** Words, numbers and what is between them; a word takes the space before it. Merges never cross these borders. */
const PIECES = /'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu;

/** The character that stands for each byte in the vocabulary: itself where it can be seen, else one from U+0100 on. */
const BYTE_CHARACTERS = (() => {
  let hidden = 0;
  return Array.from({ length: 256 }, (_, byte) => {
    const seen = (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
    return String.fromCodePoint(seen ? byte : 256 + hidden++);
  });
})();
const BYTE_OF = new Map(BYTE_CHARACTERS.map((character, byte) => [character, byte]));

export class Tokenizer {
  /** @param {any} json the contents of a tokenizer.json */
  constructor(json) {
    const { model, pre_tokenizer: before, normalizer, added_tokens: added } = json;
    const plain = before?.type === "ByteLevel" && before.use_regex && !before.add_prefix_space && !normalizer;
    if (model.type !== "BPE" || !plain) throw new Error("this tokenizer isn't plain byte-level BPE: no other is read");
    /** @type {Map<string, number>} */
    this.vocabulary = new Map(Object.entries(model.vocab));
    /** @type {Map<string, number>} when each pair was learnt; the halves are joined by a space, which no token holds */
    this.ranks = new Map(model.merges.map((pair, rank) => [Array.isArray(pair) ? pair.join(" ") : pair, rank]));
    /** @type {Map<string, number>} tokens that are found before anything else, such as `<|user|>` */
    this.special = new Map(added.map((token) => [token.content, token.id]));
    /** @type {Map<number, string>} */
    this.tokens = new Map([...this.vocabulary, ...this.special].map(([token, id]) => [id, token]));
    this.specialIds = new Set(added.filter((token) => token.special).map((token) => token.id));
    const escaped = [...this.special.keys()].sort((a, b) => b.length - a.length);
    this.borders = new RegExp(`(${escaped.map((text) => text.replace(/[\\^$.*+?()[\]{}|]/g, "\\$&")).join("|")})`, "u");
    /** @type {Map<string, number[]>} */
    this.known = new Map();
  }

  /** The ids of a text. @param {string} text @returns {number[]} */
  encode(text) {
    const ids = [];
    for (const part of this.special.size ? text.split(this.borders) : [text]) {
      if (this.special.has(part)) ids.push(this.special.get(part));
      else for (const [piece] of part.matchAll(PIECES)) ids.push(...this.merged(piece));
    }
    return ids;
  }

  /** The ids of one piece. @param {string} piece @returns {number[]} */
  merged(piece) {
    if (this.known.has(piece)) return this.known.get(piece);
    const symbols = Array.from(new TextEncoder().encode(piece), (byte) => BYTE_CHARACTERS[byte]);
    for (;;) {
      let first = Infinity;
      let at = -1;
      for (let i = 0; i + 1 < symbols.length; i++) {
        const rank = this.ranks.get(`${symbols[i]} ${symbols[i + 1]}`) ?? Infinity;
        if (rank < first) [first, at] = [rank, i];
      }
      if (at < 0) break;
      symbols.splice(at, 2, symbols[at] + symbols[at + 1]);
    }
    const ids = symbols.map((symbol) => this.vocabulary.get(symbol));
    if (this.known.size < 10_000) this.known.set(piece, ids);
    return ids;
  }

  /** The bytes of a token; none for a special one. @param {number} id @returns {Uint8Array} */
  bytes(id) {
    if (this.specialIds.has(id)) return new Uint8Array();
    return Uint8Array.from(this.tokens.get(id) ?? "", (character) => BYTE_OF.get(character));
  }

  /** The text of ids, special tokens left out. @param {number[]} ids @returns {string} */
  decode(ids) {
    const decoder = this.stream();
    return ids.map((id) => decoder.push(id)).join("") + decoder.end();
  }

  /** Decodes ids one by one: a character whose bytes are spread over tokens comes with its last one. */
  stream() {
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    return {
      /** @param {number} id */
      push: (id) => decoder.decode(this.bytes(id), { stream: true }),
      end: () => decoder.decode(),
    };
  }

  /** A prompt in chat form and the answer that is learnt behind it, with its end-of-turn token. */
  row(prompt, answer) {
    return { prompt: this.chat(prompt), answer: this.encode(`${answer}<|end|>`) };
  }

  /** A user's words in the tiny model's chat form (chat_template.jinja), up to where the answer begins. */
  chat(prompt) {
    return this.encode(`<|user|>${prompt}<|assistant|>`);
  }
}
