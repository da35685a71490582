/**
 * C += A B, for training: many tokens at once, so that each number that is read is used several times.
 *
 * The work is cut into tiles of C, up to 4 rows by 12 columns, whose sums stay in registers while a loop walks through
 * the columns of A and the rows of B. That loop is WebAssembly with SIMD, four float32 an instruction, assembled here.
 * All matrices lie row by row in one memory, which `Space` hands out.
 */

// ------------------------------------------------------------------------------------- the inner loop, in WebAssembly

const OP = { loop: 0x03, end: 0x0b, brIf: 0x0d, get: 0x20, set: 0x21, tee: 0x22, constant: 0x41, add: 0x6a, subtract: 0x6b };
const SIMD = 0xfd, LOAD = [SIMD, 0x00], LOAD_SPLAT = [SIMD, 0x09], STORE = [SIMD, 0x0b], ADD = [SIMD, 0xe4, 0x01], MULTIPLY = [SIMD, 0xe6, 0x01];
const I32 = 0x7f, V128 = 0x7b, NOTHING = 0x40;
/** A whole number below 2^28 as LEB128, 7 bits a byte. */
const leb = (n) => (n < 128 ? [n] : [(n & 127) | 128, ...leb(n >> 7)]);
const at = (offset) => [2, ...leb(offset)]; // aligned to 2^2 bytes, so many bytes on

/**
 * The body of `tile(a, aRow, aStep, b, bStep, c, cRow, steps)`: a tile of `rows` by 4 * `vectors` numbers. All but
 * `steps` are in bytes: where the three matrices begin, and how far it is to the next row or the next step.
 */
function body(rows, vectors) {
  const [a, aRow, aStep, b, bStep, c, cRow, steps] = Array(8).keys();
  const rowOf = (i) => (i ? 7 + i : a), right = 7 + rows, left = right + vectors, sums = left + 1;
  const get = (local) => [OP.get, local], set = (local) => [OP.set, local], tee = (local) => [OP.tee, local];
  const each = (n, make) => Array.from({ length: n }, (_, i) => make(i)).flat();
  const sum = (i, v) => sums + i * vectors + v;
  const code = [
    ...each(rows - 1, (i) => [...get(rowOf(i)), ...get(aRow), OP.add, ...set(rowOf(i + 1))]),
    OP.loop, NOTHING,
    ...each(vectors, (v) => [...get(b), ...LOAD, ...at(16 * v), ...set(right + v)]),
    ...each(rows, (i) => [
      ...get(rowOf(i)), ...LOAD_SPLAT, ...at(0), ...set(left),
      ...each(vectors, (v) => [...get(sum(i, v)), ...get(left), ...get(right + v), ...MULTIPLY, ...ADD, ...set(sum(i, v))]),
      ...get(rowOf(i)), ...get(aStep), OP.add, ...set(rowOf(i)),
    ]),
    ...get(b), ...get(bStep), OP.add, ...set(b),
    ...get(steps), OP.constant, 1, OP.subtract, ...tee(steps), OP.brIf, 0,
    OP.end,
    ...each(rows, (i) => [
      ...each(vectors, (v) => [...get(c), ...get(c), ...LOAD, ...at(16 * v), ...get(sum(i, v)), ...ADD, ...STORE, ...at(16 * v)]),
      ...get(c), ...get(cRow), OP.add, ...set(c),
    ]),
    OP.end,
  ];
  return [2, rows - 1, I32, vectors + 1 + rows * vectors, V128, ...code];
}

const ROWS = [4, 2, 1], VECTORS = [3, 2, 1];
/** The module: a memory comes in, a function for each size of tile goes out. */
function assembled() {
  const shapes = ROWS.flatMap((rows) => VECTORS.map((vectors) => [rows, vectors]));
  const counted = (items) => [...leb(items.length), ...items.flat()], sized = (bytes) => [...leb(bytes.length), ...bytes];
  const section = (id, items) => [id, ...sized(counted(items))], name = (text) => sized([...text].map((ch) => ch.charCodeAt(0)));
  return Uint8Array.from([
    0, 0x61, 0x73, 0x6d, 1, 0, 0, 0,
    ...section(1, [[0x60, ...counted(Array(8).fill([I32])), 0]]),
    ...section(2, [[...name("e"), ...name("m"), 2, 0, 1]]), // imports the memory e.m, of one page at least
    ...section(3, shapes.map(() => [0])),
    ...section(7, shapes.map(([rows, vectors], i) => [...name(`${rows}x${vectors}`), 0, i])),
    ...section(10, shapes.map(([rows, vectors]) => sized(body(rows, vectors)))),
  ]);
}

// ---------------------------------------------------------------------------------------------------- memory, product

/** A memory that matrices are taken from; `free` gives back all that were taken since a mark. */
export class Space {
  /** @param {number} floats how many numbers there is room for */
  constructor(floats) {
    const memory = new WebAssembly.Memory({ initial: Math.ceil(floats / 16_384) });
    this.buffer = memory.buffer;
    this.taken = 0;
    let module;
    try {
      module = new WebAssembly.Module(assembled());
    } catch {
      throw new Error("training needs WebAssembly with SIMD, which this browser doesn't have: a newer one does");
    }
    const { exports } = new WebAssembly.Instance(module, { e: { m: memory } });
    /** @type {Record<number, Function[]>} by rows, then by vectors */
    this.tiles = Object.fromEntries(ROWS.map((rows) => [rows, [undefined, ...[1, 2, 3].map((n) => exports[`${rows}x${n}`])]]));
  }

  /** `count` zeros. @param {number} count @returns {Float32Array} */
  floats(count) {
    const begin = this.taken;
    this.taken += 4 * Math.ceil(count / 4) * 4;
    if (this.taken > this.buffer.byteLength) throw new Error("there is no room left for this training: use shorter texts");
    return new Float32Array(this.buffer, begin, count).fill(0);
  }

  /** @param {number} mark what `taken` was */
  free(mark) {
    this.taken = mark;
  }

  /**
   * C += A B, where A is (n, k), B is (k, m) and m is a multiple of 4. With `turned` A lies in memory as (k, n), and
   * its transpose is meant.
   *
   * @param {Float32Array} A @param {Float32Array} B @param {Float32Array} C
   * @param {number} n @param {number} k @param {number} m @param {boolean} [turned]
   */
  multiply(A, B, C, n, k, m, turned = false) {
    const aRow = turned ? 4 : 4 * k, aStep = turned ? 4 * n : 4, step = 4 * m;
    for (let j = 0; j < m; ) {
      const vectors = Math.min(3, (m - j) / 4);
      for (let i = 0; i < n; ) {
        const rows = ROWS.find((most) => most <= n - i);
        this.tiles[rows][vectors](A.byteOffset + i * aRow, aRow, aStep, B.byteOffset + 4 * j, step, C.byteOffset + i * step + 4 * j, step, k);
        i += rows;
      }
      j += 4 * vectors;
    }
  }
}
