// The microphone as it is: models are trained on sound that no browser has suppressed, gated or amplified.
if (navigator.mediaDevices) {  // only there on https and on localhost
  const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
  const plain = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
  navigator.mediaDevices.getUserMedia = (wanted) =>
    ask(wanted.audio ? { ...wanted, audio: { ...(wanted.audio === true ? {} : wanted.audio), ...plain } } : wanted);
}

// Speaks a text while it is generated: 16-bit samples at 24 kHz of /v1/audio/speech, played as they arrive.
// Returns [message, seconds to the first sound]; what was spoken can be played again in #spoken.
window.zipperSpeak = async (text) => {
  const rate = 24000, player = document.querySelector("#spoken audio");
  window.zipperSpeaking?.abort();  // one text at a time
  const speaking = window.zipperSpeaking = new AbortController();
  window.zipperSound?.close();
  player.removeAttribute("src");
  const sound = window.zipperSound = new AudioContext({ sampleRate: rate });
  const started = performance.now(), parts = [];
  let first = null, until = 0, rest = new Uint8Array(0);
  const answer = await fetch("v1/audio/speech", {
    method: "POST",
    signal: speaking.signal,
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ model: "tts-1", voice: "alloy", input: text, response_format: "pcm" }),
  }).catch((error) => error);
  if (speaking.signal.aborted) return "⚠️ another text is spoken";
  if (answer instanceof Error) return `⚠️ the server cannot be reached (${answer.message})`;
  if (!answer.ok) return "⚠️ " + ((await answer.json().catch(() => null))?.error.message ?? `error ${answer.status}`);
  const reader = answer.body.getReader();
  let broken = "";
  for (;;) {
    const { done, value } = await reader.read().catch((error) => {
      broken = `⚠️ cut off (${error.message}): `;  // what was heard is kept
      return { done: true };
    });
    if (speaking.signal.aborted) return "⚠️ another text is spoken";
    if (done) break;
    const bytes = new Uint8Array(rest.length + value.length);
    bytes.set(rest);
    bytes.set(value, rest.length);
    const even = bytes.length - (bytes.length % 2);
    rest = bytes.slice(even);
    const samples = new Int16Array(bytes.slice(0, even).buffer);
    if (!samples.length) continue;
    first ??= performance.now() - started;
    parts.push(samples);
    const piece = sound.createBuffer(1, samples.length, rate);
    piece.copyToChannel(Float32Array.from(samples, (x) => x / 32768), 0);
    const source = sound.createBufferSource();
    source.buffer = piece;
    source.connect(sound.destination);
    until = Math.max(until, sound.currentTime + 0.05);
    source.start(until);
    until += piece.duration;
  }
  const count = parts.reduce((sum, part) => sum + part.length, 0), file = new DataView(new ArrayBuffer(44 + 2 * count));
  const letters = (at, word) => [...word].forEach((c, i) => file.setUint8(at + i, c.charCodeAt(0)));
  letters(0, "RIFF"); file.setUint32(4, 36 + 2 * count, true); letters(8, "WAVEfmt ");
  file.setUint32(16, 16, true); file.setUint16(20, 1, true); file.setUint16(22, 1, true);
  file.setUint32(24, rate, true); file.setUint32(28, 2 * rate, true);
  file.setUint16(32, 2, true); file.setUint16(34, 16, true);
  letters(36, "data"); file.setUint32(40, 2 * count, true);
  let at = 44;
  for (const part of parts) for (const sample of part) { file.setInt16(at, sample, true); at += 2; }
  player.src = URL.createObjectURL(new Blob([file.buffer], { type: "audio/wav" }));
  return `${broken}${(count / rate).toFixed(1)} s of speech; first sound after ${Math.round(first ?? 0)} ms`;
};
