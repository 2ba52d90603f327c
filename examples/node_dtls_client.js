// A device on node-dtls-client (1.1): PSK-DTLS 1.2, one CoAP request, its answer.
//
//   NODE_PATH=node_modules node node_dtls_client.js 127.0.0.1 5684 plug-batch-7 \
//       706c75672d62617463682d372d6b6579 PLUG0001 TLS_PSK_WITH_AES_128_CCM_8
//
// It prints the answer's code and payload. The library never repeats a lost flight. The
// device starts a new handshake from a new port instead.
"use strict";

const { dtls } = require("node-dtls-client");

// RFC 7252 section 4.8, in milliseconds. EXCHANGE_LIFETIME is the maximum wait for a
// separate response.
const ACK_TIMEOUT = 2000;
const MAX_RETRANSMIT = 4;
const EXCHANGE_LIFETIME = 247000;
// Time that the session stays open after a separate response. If our acknowledgement is
// lost, the response is repeated within 3 s.
const LINGER = 3000;
const HANDSHAKE = 2000;
const PATIENCE = 300000;
// Maximum time for which the device uses one session to ask again after 4.29 or 5.03. A session that is
// idle for 300 s ends, so a longer wait needs another handshake.
const SESSION = 240000;
// RFC 7252 section 5.10.5: the value of an absent Max-Age, in seconds.
const DEFAULT_MAX_AGE = 60;
const [CONFIRMABLE, ACKNOWLEDGEMENT, RESET] = [0, 2, 3];
const [TOO_MANY_REQUESTS, SERVICE_UNAVAILABLE] = [0x9d, 0xa3];

// GET /cert with {"sn": sn} as CBOR: a confirmable message with a token of one byte. The serial
// number has up to 23 characters. The message ID and the token depend on `number`.
function request(sn, number) {
  const head = Buffer.from("\x41\x01\x12\x34\xc3\xb4cert\x11\x3c\xff\xa1\x62sn", "latin1");
  head[3] = head[4] = number;
  return Buffer.concat([head, Buffer.from([0x60 | sn.length]), Buffer.from(sn)]);
}

// Returns a time plus a random part of up to half of it, so that devices that failed together do not
// retry together.
function jittered(millis) {
  return millis * (1 + Math.random() / 2);
}

// Returns a session once a handshake has succeeded.
function connect(options, deadline) {
  return new Promise((resolve, reject) => {
    const socket = dtls.createSocket(options);
    socket.once("connected", () => resolve(socket));
    socket.on("error", (error) => {
      if (Date.now() > deadline) reject(error);
      else resolve(connect(options, deadline));
    });
  });
}

// Returns Max-Age and the payload, or undefined for a malformed message or an unknown critical
// option. The options are read one by one, because they may contain the payload marker 0xff (RFC
// 7252 section 3.1).
function read(message) {
  let at = 4 + (message[0] & 15);
  let number = 0, maxAge = DEFAULT_MAX_AGE;
  const extended = (nibble) => {
    if (nibble < 13) return nibble;
    const size = nibble - 12;
    if (size > 2 || at + size > message.length) return NaN;
    at += size;
    return (size === 1 ? 13 : 269) + message.readUIntBE(at - size, size);
  };
  while (at < message.length && message[at] !== 0xff) {
    const first = message[at++];
    number += extended(first >> 4);
    const size = extended(first & 15);
    // Not a number, too long, or critical.
    if (!(at + size <= message.length) || !(number % 2 === 0)) return undefined;
    if (number === 14 && size <= 4) maxAge = size === 0 ? 0 : message.readUIntBE(at, size);
    at += size;
  }
  // A marker is followed by a payload.
  if (at + 1 === message.length) return undefined;
  return { maxAge, payload: message.subarray(at + 1) };
}

// Returns the answer to a request, piggybacked or separate, or undefined.
function exchange(socket, message) {
  return new Promise((resolve) => {
    let answer, timer;
    let acknowledged = false, sent = 0;
    let wait = jittered(ACK_TIMEOUT);
    const end = () => {
      clearTimeout(timer);
      socket.removeListener("message", take);
      resolve(answer);
    };
    const after = (millis, action) => {
      clearTimeout(timer);
      timer = setTimeout(action, millis);
    };
    // RFC 7252 section 4.2: the request is repeated until it is acknowledged.
    const transmit = () => {
      if (sent > MAX_RETRANSMIT) return end();
      socket.send(message);
      sent++;
      after(wait, transmit);
      wait *= 2;
    };
    const take = (got) => {
      if (got.length < 4 || got[0] >> 6 !== 1) return;
      const kind = (got[0] >> 4) & 3;
      const sameId = got.readUInt16BE(2) === message.readUInt16BE(2);
      // An answer has the request's token. An answer in an acknowledgement also has the request's
      // message ID.
      const isAnswer =
        [2, 4, 5].includes(got[1] >> 5) && (got[0] & 15) === 1 && got[4] === message[4] &&
        kind !== RESET && (kind !== ACKNOWLEDGEMENT || sameId);
      const found = isAnswer ? read(got) : undefined;
      // Section 4.2: each copy of a confirmable answer is acknowledged. Any other confirmable
      // message, such as an empty one (a ping), is rejected.
      if (kind === CONFIRMABLE) socket.send(Buffer.from([found ? 0x60 : 0x70, 0, got[2], got[3]]));
      if (got[1] === 0 && got.length === 4 && sameId && !answer) {
        if (kind === RESET) return end();
        if (kind === ACKNOWLEDGEMENT && !acknowledged) {
          // Section 5.2.2: the answer follows separately, and the request is not repeated.
          acknowledged = true;
          after(EXCHANGE_LIFETIME, end);
        }
      }
      if (found && !answer) {
        answer = { code: got[1], maxAge: found.maxAge, payload: Buffer.from(found.payload) };
        after(kind === CONFIRMABLE ? LINGER : 0, end);
      }
    };
    socket.on("message", take);
    socket.once("close", end);
    transmit();
  });
}

// Asks again after 4.29 and 5.03, until there is another answer or the session is too old.
async function ask(socket, sn) {
  const giveUp = Date.now() + SESSION;
  for (let number = 1; ; number++) {
    const answer = await exchange(socket, request(sn, number));
    const isEarly = answer && [TOO_MANY_REQUESTS, SERVICE_UNAVAILABLE].includes(answer.code);
    const wait = isEarly ? jittered(1000 * Math.max(answer.maxAge, 1)) : 0;
    if (!isEarly || Date.now() + wait > giveUp) return answer;
    await new Promise((resolve) => setTimeout(resolve, wait));
  }
}

async function main([host, port, identity, key, sn, suite]) {
  if (!suite || sn.length > 23) {
    console.error("usage: node_dtls_client.js HOST PORT IDENTITY PSK-HEX SN SUITE");
    return 2;
  }
  const options = {
    type: "udp4",
    address: host,
    port: Number(port),
    // The library expects the key as a string with one byte per character.
    psk: { [identity]: Buffer.from(key, "hex").toString("latin1") },
    ciphers: [suite],
    timeout: HANDSHAKE,
  };
  const deadline = Date.now() + PATIENCE;
  let answer;
  // The library also drops datagrams that arrive out of order. Without an answer, the device begins
  // with another handshake.
  while (!answer && Date.now() < deadline) {
    const socket = await connect({ ...options }, deadline);
    answer = await ask(socket, sn);
    await new Promise((resolve) => socket.close(resolve));
  }
  if (!answer) {
    console.error("no answer");
    return 1;
  }
  console.log(`${suite} ${answer.code >> 5}.${String(answer.code & 31).padStart(2, "0")}`);
  process.stdout.write(Buffer.concat([answer.payload, Buffer.from("\n")]));
  if ([TOO_MANY_REQUESTS, SERVICE_UNAVAILABLE].includes(answer.code)) {
    console.error(`ask again in a new session, after ${answer.maxAge} s`);
  }
  return answer.code >> 5 === 2 ? 0 : 1;
}

main(process.argv.slice(2)).then(
  (status) => (process.exitCode = status),
  (error) => {
    console.error(error.message);
    process.exitCode = 1;
  },
);
