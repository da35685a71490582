/**
 * A training step's memory, followed without data: tensors are sizes, and each operation says what it makes and what
 * autograd keeps. It is what utils/profiling/peak.py sees of PyTorch's meta device, in the order in which PyTorch's
 * autograd engine works, so the largest sum is what `torch.cuda.max_memory_allocated` reports.
 *
 * @typedef {{bytes: number, kind: string, refs: number, n: number, width: number, node: Node | null, free?: boolean}} Tensor
 * @typedef {{order: number, inputs: (Node | null)[], leaf?: Tensor, kept: Tensor[], keeps: number, block: Block | null,
 *   index: number, back: (grad: Tensor, kept: Tensor[]) => (Tensor | null)[]}} Node
 * @typedef {{run: () => any, inputs: Tensor[], nodes: number, kept: Tensor[][] | null, left: number}} Block
 */

const ROUNDING = 512; // the CUDA allocator hands out multiples of so many bytes
export const rounded = (bytes) => Math.ceil(bytes / ROUNDING) * ROUNDING;

/** Thrown where a recomputed block has made all that its backward pass needs, as PyTorch's checkpoint does. */
class Enough extends Error {}

export class Tape {
  /** @type {Record<string, number>} */ now = {};
  /** @type {Record<string, {total: number, parts: Record<string, number>}>} */ peaks = {};
  total = 0;
  phase = "";
  kind = "other";
  order = 0;
  /** @type {Block | null} */ block = null;
  /** @type {null | {kept: Tensor[][], made: Tensor[], block: Block}} */ again = null;

  change(kind, bytes) {
    this.now[kind] = (this.now[kind] ?? 0) + bytes;
    this.total += bytes;
    if (bytes > 0) this.look();
  }
  look() {
    if (this.phase && this.total > (this.peaks[this.phase]?.total ?? -1)) this.peaks[this.phase] = { total: this.total, parts: { ...this.now } };
  }
  during(phase, run) {
    this.phase = phase;
    this.look();
    run();
    this.phase = "";
  }
  /** What `run` makes is of this kind. */
  as(kind, run) {
    const before = this.kind;
    this.kind = kind;
    try {
      return run();
    } finally {
      this.kind = before;
    }
  }
  /** @returns {Tensor} A new tensor of `n` numbers of `width` bytes, held once. */
  make(n, width, kind = this.kind) {
    const tensor = { bytes: rounded(n * width), kind, refs: 1, n, width, node: null };
    this.change(kind, tensor.bytes);
    this.again?.made.push(tensor);
    return tensor;
  }
  hold(tensor) {
    tensor.refs++;
    return tensor;
  }
  drop(...tensors) {
    for (const tensor of tensors) if (tensor && --tensor.refs === 0) this.change(tensor.kind, -tensor.bytes);
  }
  relabel(tensor, kind) {
    this.change(tensor.kind, -tensor.bytes);
    tensor.kind = kind;
    this.now[kind] = (this.now[kind] ?? 0) + tensor.bytes;
    this.total += tensor.bytes;
  }
  /** What comes and goes at once. */
  passing(bytes, kind) {
    this.change(kind, bytes);
    this.change(kind, -bytes);
  }

  /**
   * Note an operation for the backward pass before its result is made. `keeps` are the tensors that autograd saves,
   * parameters among them. Null where no input has a gradient.
   */
  record(inputs, keeps, back) {
    const nodes = inputs.map((tensor) => tensor.node);
    if (!nodes.some(Boolean)) return null;
    if (this.again) {
      if (keeps.length) {
        const { kept, block } = this.again;
        kept.push(keeps.map((tensor) => this.hold(tensor)));
        if (kept.length === block.nodes) throw new Enough();
      }
      return /** @type {any} */ ({});
    }
    /** @type {Node} */
    const node = { order: ++this.order, inputs: nodes, kept: [], keeps: keeps.length, block: null, index: -1, back };
    if (this.block && keeps.length) {
      node.block = this.block;
      node.index = this.block.nodes++;
      this.block.left++;
    } else node.kept = keeps.map((tensor) => this.hold(tensor));
    return node;
  }

  /** A block of which the inputs alone are kept: it runs again when its first saved tensor is asked for. */
  checkpoint(inputs, run) {
    this.block = { run, inputs: inputs.map((tensor) => this.hold(tensor)), nodes: 0, kept: null, left: 0 };
    const out = run();
    if (!this.block.nodes) this.drop(...inputs);
    this.block = null;
    return out;
  }
  recompute(block) {
    const again = (this.again = { kept: [], made: [], block });
    const { kind } = this, held = block.inputs.map(({ refs }) => refs);
    try {
      block.run();
    } catch (error) {
      if (!(error instanceof Enough)) throw error;
    }
    this.kind = kind;
    this.again = null;
    block.kept = again.kept;
    const saved = new Map();
    // What the thrown-out run held as its own variables is let go: only what was saved stays.
    for (const tensor of again.kept.flat()) saved.set(tensor, (saved.get(tensor) ?? 0) + 1);
    for (const tensor of again.made) if (tensor.refs > 0) while (tensor.refs > (saved.get(tensor) ?? 0)) this.drop(tensor);
    block.inputs.forEach((input, i) => (input.refs = held[i] + (saved.get(input) ?? 0)));
  }

  /** The backward pass: of the nodes whose gradient is complete, the youngest is next; a parameter's comes at once. */
  backward(root, first) {
    const waits = new Map(), seen = new Set([root]), stack = [root];
    while (stack.length) {
      for (const input of stack.pop().inputs) {
        if (!input) continue;
        waits.set(input, (waits.get(input) ?? 0) + 1);
        if (!seen.has(input)) seen.add(input), stack.push(input);
      }
    }
    const grads = new Map([[root, first]]), ready = [root];
    while (ready.length) {
      let at = 0;
      for (let i = 1; i < ready.length; i++) if (ready[i].order > ready[at].order) at = i;
      const [node] = ready.splice(at, 1), grad = grads.get(node);
      grads.delete(node);
      if (node.leaf) {
        if (!node.stays) this.relabel(grad, "gradients");
        continue;
      }
      let kept = node.kept;
      const block = node.block;
      if (block) {
        if (!block.kept) this.recompute(block);
        kept = block.kept[node.index];
      }
      const out = node.back(grad, kept);
      if (block && --block.left === 0) this.drop(...block.inputs);
      node.inputs.forEach((input, i) => {
        if (!input) return out[i] && this.drop(out[i]);
        const before = grads.get(input);
        if (before && out[i]) {
          const sum = this.make(before.n, before.width);
          this.drop(before, out[i]);
          grads.set(input, sum);
        } else if (out[i]) grads.set(input, out[i]);
        waits.set(input, waits.get(input) - 1);
        if (!waits.get(input)) ready.push(input);
      });
    }
  }
}
