/* The part of CoAP that a device needs (RFC 7252), for the clients in this folder: one
 * confirmable request for /cert and its answer, piggybacked or separate. The caller sends
 * and receives:
 *
 *   struct exchange e;
 *   exchange_start(&e, sn);
 *   while (exchange_goes_on(&e)) {
 *     if (exchange_due(&e)) send(e.request, e.request_length), exchange_sent(&e);
 *     receive a message, for at most exchange_wait(&e) milliseconds;
 *     if (exchange_receive(&e, message, length)) send(e.reply, sizeof e.reply);
 *   }
 *
 * It stores nothing and ends with its session. The firmware kit does the rest: firmware/. */
#ifndef COAP_H
#define COAP_H

#include <stdio.h>
#include <string.h>
#include <time.h>

/* RFC 7252 section 4.8, in milliseconds. EXCHANGE_LIFETIME is the longest wait for a separate
 * answer. */
enum { ACK_TIMEOUT = 2000, MAX_RETRANSMIT = 4, EXCHANGE_LIFETIME = 247000 };
/* Maximum number of requests, each with a new message ID, while none is acknowledged. */
enum { ATTEMPTS = 3 };
/* Time that the session stays open after a separate answer. If our acknowledgement is lost, the
 * answer is repeated within 3 s. */
enum { LINGER = 3000 };
/* Maximum time for which the device uses one session to ask again after 4.29 or 5.03. A session that
 * is idle for 300 s ends, so a longer wait needs another handshake. */
enum { PATIENCE = 240000 };
/* RFC 7252 section 5.10.5: the value of an absent Max-Age, in seconds. */
enum { DEFAULT_MAX_AGE = 60 };

enum { CONFIRMABLE, NON_CONFIRMABLE, ACKNOWLEDGEMENT, RESET };
enum { TOO_MANY_REQUESTS = 0x9d, SERVICE_UNAVAILABLE = 0xa3 };

struct exchange {
  unsigned char request[64], reply[4], payload[1024];
  size_t request_length, payload_length;
  int sent, attempts, acknowledged, refused, code;
  unsigned long max_age;     /* of the answer, in seconds */
  long wait, until, give_up; /* milliseconds */
};

static inline long exchange_now(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Adds a random part of up to half of a time, so that devices that failed together do not retry
 * together. */
static inline long exchange_jitter(long millis) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return millis + now.tv_nsec / 1000 % (millis / 2 + 1);
}

/* Begins an attempt, with a new message ID. */
static inline void exchange_attempt(struct exchange *e) {
  e->request[3]++;
  e->wait = exchange_jitter(ACK_TIMEOUT);
  e->sent = 0;
  e->attempts++;
}

/* GET /cert with {"sn": sn, "host": true} as CBOR: a confirmable message with a token of one byte.
 * The serial number has up to 23 characters. If it is empty, the map has only "host", and the
 * server uses the PSK identity as the device ID. A server that does not know "host" ignores it. */
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
  e->until = exchange_now();
  e->give_up = e->until + PATIENCE;
  exchange_attempt(e);
}

static inline int exchange_goes_on(const struct exchange *e) {
  if (e->refused) return 0;
  if (exchange_now() < e->until) return 1;
  return !e->code && !e->acknowledged && (e->sent <= MAX_RETRANSMIT || e->attempts < ATTEMPTS);
}

/* Section 4.2: the request is repeated until it is acknowledged. */
static inline int exchange_due(struct exchange *e) {
  if (e->acknowledged || e->code || exchange_now() < e->until) return 0;
  if (e->sent > MAX_RETRANSMIT) exchange_attempt(e);
  /* Each new request has a new token. A further attempt at the same request keeps the token. */
  if (e->sent == 0 && e->attempts == 1) e->request[4]++;
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

/* Reads the extended delta or length of an option (section 3.1). Returns -1 if it is malformed. */
static inline long exchange_extended(const unsigned char *message, size_t length, size_t *at, int nibble) {
  size_t size = nibble == 13 ? 1 : nibble == 14 ? 2 : 0;
  if (nibble == 15 || length - *at < size) return -1;
  *at += size;
  return size == 0 ? nibble : size == 1 ? 13 + message[*at - 1] : 269 + message[*at - 2] * 256L + message[*at - 1];
}

/* Reads the options, one by one, because their values may contain the payload marker 0xff. Returns
 * the offset of the payload, or 0 for a malformed message or an unknown critical option. */
static inline size_t exchange_options(const unsigned char *message, size_t length, unsigned long *max_age) {
  size_t at = 4u + (message[0] & 15);
  long number = 0;
  while (at < length && message[at] != 0xff) {
    int first = message[at++];
    long delta = exchange_extended(message, length, &at, first >> 4);
    long size = delta < 0 ? -1 : exchange_extended(message, length, &at, first & 15);
    if (size < 0 || (size_t)size > length - at) return 0;
    number += delta;
    if (number % 2 == 1) return 0; /* section 5.4.1 */
    if (number == 14 && size <= 4) *max_age = 0;
    for (; size > 0; size--, at++)
      if (number == 14) *max_age = *max_age << 8 | message[at];
  }
  /* Section 3: a marker is followed by a payload. */
  return at < length && ++at == length ? 0 : at;
}

/* After 4.29 and 5.03, asks again later. Returns 0 if the session would be too old by then. */
static inline int exchange_comes_back(struct exchange *e) {
  long left = e->give_up - exchange_now();
  if ((e->code != TOO_MANY_REQUESTS && e->code != SERVICE_UNAVAILABLE) || left < 0) return 0;
  if (e->max_age > (unsigned long)left / 1500) return 0;
  e->until = exchange_now() + exchange_jitter((long)(e->max_age > 0 ? e->max_age : 1) * 1000);
  e->code = e->acknowledged = e->attempts = 0;
  exchange_attempt(e);
  return 1;
}

/* Processes a message; returns whether e->reply must be sent. */
static inline int exchange_receive(struct exchange *e, const unsigned char *message, size_t length) {
  if (length < 4 || message[0] >> 6 != 1) return 0;
  int type = message[0] >> 4 & 3, kind = message[1] >> 5;
  int waits = e->sent > 0 && !e->code, same_id = memcmp(message + 2, e->request + 2, 2) == 0;
  unsigned long max_age = DEFAULT_MAX_AGE;
  size_t payload = 0;
  /* An answer has the request's token. An answer in an acknowledgement also has the request's message
   * ID. */
  if ((kind == 2 || kind == 4 || kind == 5) && (message[0] & 15) == 1 && length > 4 &&
      message[4] == e->request[4] && type != RESET && (type != ACKNOWLEDGEMENT || same_id))
    payload = exchange_options(message, length, &max_age);

  /* Section 4.2: each copy of a confirmable answer is acknowledged. Any other confirmable message,
   * such as an empty one (a ping), is rejected. */
  e->reply[0] = payload ? 0x60 : 0x70;
  e->reply[1] = 0;
  memcpy(e->reply + 2, message + 2, 2);

  if (waits && same_id && length == 4 && message[1] == 0) {
    if (type == RESET) e->refused = 1;
    if (type == ACKNOWLEDGEMENT && !e->acknowledged) {
      /* Section 5.2.2: the answer follows separately, and the request is not repeated. */
      e->acknowledged = 1;
      e->until = exchange_now() + EXCHANGE_LIFETIME;
    }
  }
  if (waits && payload) {
    e->code = message[1];
    e->max_age = max_age;
    e->payload_length = length - payload < sizeof e->payload ? length - payload : sizeof e->payload;
    memcpy(e->payload, message + payload, e->payload_length);
    if (!exchange_comes_back(e)) e->until = exchange_now() + (type == CONFIRMABLE ? LINGER : 0);
  }
  return type == CONFIRMABLE;
}

/* Prints the answer, after the name of the suite; returns the exit status. */
static inline int exchange_result(const struct exchange *e, const char *suite) {
  if (e->code == 0) return fputs(e->refused ? "the request was rejected\n" : "no answer\n", stderr), 1;
  printf("%s %d.%02d ", suite, e->code >> 5, e->code & 31);
  fwrite(e->payload, 1, e->payload_length, stdout);
  putchar('\n');
  if (e->code == TOO_MANY_REQUESTS || e->code == SERVICE_UNAVAILABLE)
    fprintf(stderr, "ask again in a new session, after %lu s\n", e->max_age);
  return e->code >> 5 == 2 ? 0 : 1;
}

#endif
