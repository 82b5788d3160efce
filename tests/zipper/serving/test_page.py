"""The script of `zipper web`, in node where there is one, with a player and a server that stand in."""

import json
import shutil
import subprocess

import pytest

from reproduce import ROOT

STAND_INS = """
const player = { src: "", removeAttribute() { this.src = ""; } };
globalThis.window = globalThis;
Object.defineProperty(globalThis, "navigator", { value: {}, configurable: true });
globalThis.document = { querySelector: () => player };
globalThis.URL.createObjectURL = (blob) => `${blob.size} bytes`;
globalThis.AudioContext = class {
  currentTime = 0;
  close() {}
  createBuffer(channels, count, rate) { return { duration: count / rate, copyToChannel() {} }; }
  createBufferSource() { return { connect() {}, start() {} }; }
};
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
globalThis.fetch = async (url, { body, signal }) => {  // "3 of 200": three pieces of 200 bytes
  const text = JSON.parse(body).input, [count, size] = text.split(" of ").map(Number);
  if (text === "gone") throw new TypeError("fetch failed");
  if (text === "error") return new Response("Internal Server Error", { status: 500 });
  if (text === "long") return new Response('{"error": {"message": "too long"}}', { status: 400 });
  let sent = 0;
  const read = async () => {
    await sleep(20);
    if (text === "cut" && sent === 2) throw new TypeError("network error");
    return sent++ < (count || 9) ? { done: false, value: new Uint8Array(size || 200) } : { done: true };
  };
  return { ok: true, body: { getReader: () => ({ read }) } };
};
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
@pytest.mark.parametrize(
    ("texts", "message", "file"),
    [
        (["3 of 200"], "0.0 s of speech", "644 bytes"),  # 44 of the header
        (["10 of 1000", "3 of 200"], "0.0 s of speech", "644 bytes"),  # the second one alone
        (["cut"], "cut off (network error): 0.0 s of speech", "444 bytes"),  # what was heard is kept
        (["error"], "error 500", ""),
        (["long"], "too long", ""),
        (["gone"], "the server cannot be reached (fetch failed)", ""),
    ],
)
def test_the_page_speaks_one_text_at_a_time_and_says_what_fails(texts, message, file):
    script = (ROOT / "src/zipper/serving/page.js").read_text(encoding="utf-8")
    ask = f"""
    const asked = {json.dumps(texts)}.map((text) => zipperSpeak(text));
    Promise.all(asked).then((told) => console.log(JSON.stringify([told.at(-1), player.src])));
    """
    run = subprocess.run(["node", "-e", STAND_INS + script + ask], capture_output=True, text=True, check=True)
    told, playing = json.loads(run.stdout)
    assert message in told
    assert playing == file
