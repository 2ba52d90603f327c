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
const [CONFIRMABLE, ACKNOWLEDGEMENT, RESET] = [0, 2, 3];

// GET /cert with {"sn": sn} as CBOR: a confirmable message of token 0xc3. The serial
// number has up to 23 characters.
function request(sn) {
  const head = Buffer.from("\x41\x01\x12\x34\xc3\xb4cert\x11\x3c\xff\xa1\x62sn", "latin1");
  return Buffer.concat([head, Buffer.from([0x60 | sn.length]), Buffer.from(sn)]);
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

// Returns the response to a request, piggybacked or separate, or undefined.
function exchange(socket, message) {
  return new Promise((resolve) => {
    let response, timer;
    let acknowledged = false, sent = 0;
    let wait = ACK_TIMEOUT * (1 + Math.random() / 2);
    const end = () => {
      clearTimeout(timer);
      resolve(response);
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
    socket.on("message", (got) => {
      if (got.length < 4 || got[0] >> 6 !== 1) return;
      const kind = (got[0] >> 4) & 3;
      const ours = got.readUInt16BE(2) === message.readUInt16BE(2);
      if (kind === RESET) {
        if (ours) end();
        return;
      }
      if (kind === ACKNOWLEDGEMENT && got[1] === 0) {
        // Section 5.2.2: the response follows separately.
        if (ours && !acknowledged && !response) {
          acknowledged = true;
          after(EXCHANGE_LIFETIME, end);
        }
        return;
      }
      const matches = got[1] >= 0x40 && (got[0] & 15) === 1 && got[4] === message[4];
      // Section 4.2: each copy of the response is acknowledged. Any other confirmable
      // message, such as an empty one (a ping), is rejected.
      if (kind === CONFIRMABLE) socket.send(Buffer.from([matches ? 0x60 : 0x70, 0, got[2], got[3]]));
      if (matches && !response) {
        response = Buffer.from(got);
        after(kind === CONFIRMABLE ? LINGER : 0, end);
      }
    });
    socket.on("close", end);
    transmit();
  });
}

// Returns the payload. The options are skipped one by one, because they may contain the
// payload marker 0xff.
function payload(message) {
  let at = 4 + (message[0] & 15);
  while (at < message.length && message[at] !== 0xff) {
    const delta = message[at] >> 4;
    let size = message[at] & 15;
    at += 1 + (delta === 13 ? 1 : delta === 14 ? 2 : 0);
    if (size === 13) size = 13 + message[at++];
    at += size;
  }
  return message.subarray(at + 1);
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
  let response;
  // The library also drops datagrams that arrive out of order.
  while (!response && Date.now() < deadline) {
    const socket = await connect({ ...options }, deadline);
    response = await exchange(socket, request(sn));
    await new Promise((resolve) => socket.close(resolve));
  }
  if (!response) {
    console.error("no answer");
    return 1;
  }
  console.log(`${suite} ${response[1] >> 5}.${String(response[1] & 31).padStart(2, "0")}`);
  process.stdout.write(Buffer.concat([payload(response), Buffer.from("\n")]));
  return response[1] >> 5 === 2 ? 0 : 1;
}

main(process.argv.slice(2)).then(
  (status) => (process.exitCode = status),
  (error) => {
    console.error(error.message);
    process.exitCode = 1;
  },
);
