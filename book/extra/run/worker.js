// Python with NumPy in a thread of its own, for run.js: {arrays} once, then {code} each time; back come {loaded} bytes,
// {ready}, and {text, score} or {error} of each run. A run that never ends is ended with the worker.
"use strict";

const HOME = new URL("../pyodide/0.27.7/", self.location).href;
const plain = self.fetch.bind(self);
let loaded = 0;

/** As fetch, but it counts what arrives, and takes the large file as it lies here: packed. */
self.fetch = async (address, options) => {
  const url = String(address.url ?? address);
  const packed = url.endsWith(".wasm");
  const reply = await plain(packed ? `${url}.gz` : url, options);
  if (!reply.ok) throw new Error(`${url.split("/").pop()}: ${reply.status}`);
  const parts = [];
  const reader = reply.body.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    loaded += value.length;
    self.postMessage({ loaded });
  }
  let body = new Blob(parts).stream();
  // The server may have said that it is packed, and the browser unpacked it.
  const first = parts[0] ?? [];
  if (packed && first[0] === 0x1f && first[1] === 0x8b) body = body.pipeThrough(new DecompressionStream("gzip"));
  const type = packed ? "application/wasm" : (reply.headers.get("content-type") ?? "");
  return new Response(body, { headers: { "content-type": type } });
};

// eval_code shows the last expression of a program as a notebook does, and names its lines in errors.
const PROGRAM = `
import linecache, traceback
import numpy as np
from pyodide.code import eval_code

def given(arrays):
    return {name: np.frombuffer(data.to_py(), kind).reshape(shape).astype(to)
            for name, (data, kind, shape, to) in arrays.items()}

def run(code, arrays):
    names = {"np": np, **{name: array.copy() for name, array in arrays.items()}}
    try:
        shown = eval_code(code, globals=names, filename="cell")
    except BaseException as error:
        places = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == "cell"]
        line = error.lineno if isinstance(error, SyntaxError) else places[-1] if places else None
        words = error.msg if isinstance(error, SyntaxError) else error
        return {"error": f"{f'Line {line}: ' if line else ''}{type(error).__name__}: {words}"}
    if isinstance(shown, np.generic):
        shown = shown.item()
    score = names.get("score")
    try:
        score = np.asarray(score, float)
        fits = score.shape == (len(arrays["ood"]),) and np.isfinite(score).all()
    except (TypeError, ValueError):
        fits = False
    return {"text": "" if shown is None else repr(shown), "score": score.tolist() if fits else None}
`;

let python, names, run;

async function begin(arrays) {
  importScripts(`${HOME}pyodide.js`);
  python = await loadPyodide({ indexURL: HOME });
  await python.loadPackage("numpy", { messageCallback: () => {} });
  python.runPython(PROGRAM);
  const given = python.globals.get("given");
  const told = new Map(Object.entries(arrays).map(([name, a]) => [name, [a.data, a.kind, a.shape, a.to]]));
  names = given(python.toPy(told, { depth: 2 }));
  run = python.globals.get("run");
  self.postMessage({ ready: true });
}

self.onmessage = async ({ data }) => {
  try {
    if (data.arrays) return await begin(data.arrays);
    const printed = [];
    python.setStdout({ batched: (line) => printed.push(line) });
    const said = run(data.code, names).toJs({ dict_converter: Object.fromEntries });
    if (printed.length) said.text = [...printed, said.text ?? ""].join("\n").trim();
    self.postMessage(said);
  } catch (error) {
    self.postMessage({ failed: String(error.message ?? error) });
  }
};
