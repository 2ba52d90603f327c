/* The part of CoAP that a device needs (RFC 7252), for the clients in this folder: one
 * confirmable request for /cert and its response, piggybacked or separate. The caller sends
 * and receives:
 *
 *   struct exchange e;
 *   exchange_start(&e, sn);
 *   while (exchange_goes_on(&e)) {
 *     if (exchange_due(&e)) send(e.request, e.request_length), exchange_sent(&e);
 *     receive a message, for at most exchange_wait(&e) milliseconds;
 *     if (exchange_receive(&e, message, length)) send(e.reply, sizeof e.reply);
 *   }
 */
#ifndef COAP_H
#define COAP_H

#include <stdio.h>
#include <string.h>
#include <time.h>

/* RFC 7252 section 4.8. EXCHANGE_LIFETIME is the maximum wait for a separate response. */
enum { ACK_TIMEOUT = 2000, MAX_RETRANSMIT = 4, EXCHANGE_LIFETIME = 247000 };
/* Maximum number of requests, each with a new message ID, while none is acknowledged. */
enum { ATTEMPTS = 3 };
/* Time that the session stays open after a separate response, in milliseconds. If our
 * acknowledgement is lost, the response is repeated within 3 s. */
enum { LINGER = 3000 };

enum { CONFIRMABLE, NON_CONFIRMABLE, ACKNOWLEDGEMENT, RESET };

struct exchange {
  unsigned char request[64], reply[4], payload[1024];
  size_t request_length, payload_length;
  int sent, attempts, acknowledged, refused, code;
  long wait, until; /* milliseconds */
};

static inline long exchange_now(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* ACK_TIMEOUT times a random factor of 1 to 1.5, and nothing sent so far. */
static inline void exchange_attempt(struct exchange *e) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  e->wait = ACK_TIMEOUT + now.tv_nsec / 1000 % (ACK_TIMEOUT / 2);
  e->sent = 0;
  e->attempts++;
}

/* GET /cert with {"sn": sn, "host": true} as CBOR: a confirmable message of token 0xc3. The
 * serial number has up to 23 characters. If it is empty, the map has only "host", and the server
 * uses the PSK identity as the device ID. A server that does not know "host" ignores it. */
static inline void exchange_start(struct exchange *e, const char *sn) {
  size_t length = strlen(sn), at = 13;
  memset(e, 0, sizeof *e);
  memcpy(e->request, "\x41\x01\x12\x34\xc3\xb4" "cert\x11\x3c\xff", at);
  e->request[at++] = length ? 0xa2 : 0xa1;
  if (length) {
    memcpy(e->request + at, "\x62sn", 3);
    e->request[at + 3] = (unsigned char)(0x60 | length);
    memcpy(e->request + at + 4, sn, length);
    at += 4 + length;
  }
  memcpy(e->request + at, "\x64host\xf5", 6);
  e->request_length = at + 6;
  exchange_attempt(e);
  e->until = exchange_now();
}

static inline int exchange_goes_on(const struct exchange *e) {
  int time_left = exchange_now() < e->until;
  if (e->refused) return 0;
  if (e->code || e->acknowledged) return time_left;
  return time_left || e->sent <= MAX_RETRANSMIT || e->attempts < ATTEMPTS;
}

/* Section 4.2: the request is repeated until it is acknowledged. */
static inline int exchange_due(struct exchange *e) {
  if (e->acknowledged || e->code || exchange_now() < e->until) return 0;
  if (e->sent > MAX_RETRANSMIT) {
    e->request[3]++;
    exchange_attempt(e);
  }
  return 1;
}

static inline void exchange_sent(struct exchange *e) {
  e->sent++;
  e->until = exchange_now() + e->wait;
  e->wait *= 2;
}

static inline long exchange_wait(const struct exchange *e) {
  long left = e->until - exchange_now();
  return left > 0 ? left : 0;
}

/* Processes a message; returns whether e->reply must be sent. */
static inline int exchange_receive(struct exchange *e, const unsigned char *message, size_t length) {
  if (length < 4 || message[0] >> 6 != 1) return 0;
  int type = message[0] >> 4 & 3, ours = memcmp(message + 2, e->request + 2, 2) == 0;
  size_t token_length = message[0] & 15;
  memcpy(e->reply, "\x60\x00", 2);
  memcpy(e->reply + 2, message + 2, 2);
  if (type == RESET) {
    e->refused |= ours;
    return 0;
  }
  if (message[1] == 0 && type == ACKNOWLEDGEMENT) {
    /* Section 5.2.2: the response follows separately. */
    if (ours && !e->acknowledged && !e->code) e->acknowledged = 1, e->until = exchange_now() + EXCHANGE_LIFETIME;
    return 0;
  }
  if (message[1] < 0x40 || token_length != 1 || length < 5 || message[4] != e->request[4]) {
    /* Section 4.2: a confirmable message that is not the response, such as an empty one (a
     * ping), is rejected. */
    e->reply[0] = 0x70;
    return type == CONFIRMABLE;
  }
  if (e->code == 0) {
    size_t at = 5;
    e->code = message[1];
    e->until = exchange_now() + (type == CONFIRMABLE ? LINGER : 0);
    /* The options are skipped one by one, because they may contain the payload marker 0xff. */
    while (at < length && message[at] != 0xff) {
      size_t delta = message[at] >> 4, size = message[at] & 15;
      at += 1 + (delta == 13 ? 1 : delta == 14 ? 2 : 0);
      if (size == 13 && at < length) size = 13u + message[at++];
      else if (size == 14 && at + 1 < length) size = 269u + message[at] * 256u + message[at + 1], at += 2;
      at += size;
    }
    if (at < length) e->payload_length = length - at - 1;
    if (e->payload_length > sizeof e->payload) e->payload_length = sizeof e->payload;
    memcpy(e->payload, message + length - e->payload_length, e->payload_length);
  }
  /* Each copy of a confirmable response is acknowledged (section 4.2). */
  return type == CONFIRMABLE;
}

/* Prints the response, after the name of the suite; returns the exit status. */
static inline int exchange_result(const struct exchange *e, const char *suite) {
  if (e->code == 0) return fputs(e->refused ? "the request was rejected\n" : "no answer\n", stderr), 1;
  printf("%s %d.%02d ", suite, e->code >> 5, e->code & 31);
  fwrite(e->payload, 1, e->payload_length, stdout);
  putchar('\n');
  return e->code >> 5 == 2 ? 0 : 1;
}

#endif
