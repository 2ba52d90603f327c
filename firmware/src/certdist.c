/* The device's state machine: connects, asks, listens for a separate answer, stores, waits. It owns
 * every delay. It knows neither sockets nor which DTLS stack is used. */
#include "cd_internal.h"

#include <string.h>

/* A record has to fit into the buffer of the answer. */
typedef char cd_answer_max_is_at_least_cd_record_max[CD_ANSWER_MAX >= CD_RECORD_MAX && CD_ANSWER_MAX < 0x8000 ? 1 : -1];

/* RFC 7252 section 4.8, in milliseconds. */
enum { ACK_TIMEOUT = 2000, MAX_RETRANSMIT = 4, EXCHANGE_LIFETIME = 247000 };
enum { SECOND = 1000, MINUTE = 60 * SECOND, HOUR = 60 * MINUTE, DAY = 24 * HOUR };
/* No delay is longer, before jitter: with it, half the range of the clock is never reached. */
#define LONGEST_DELAY ((uint32_t)7 * DAY)
/* How long a session stays open after a separate answer, in case our acknowledgement is lost: the
 * server repeats the answer within 3 s. */
enum { LINGER = 3 * SECOND };
/* RFC 7252 section 5.10.5: the value of an absent Max-Age, in seconds. */
static const uint32_t default_max_age = 60;
enum { ALERT_DECRYPT_ERROR = 51 };
/* RFC 7959 section 2.2: blocks of 1024 bytes. */
enum { LARGEST_EXPONENT = 6 };

/* Codes of answers: class << 5 | detail. */
enum {
  CODE_CONTENT = 0x45,
  CODE_FORBIDDEN = 0x83,
  CODE_NOT_FOUND = 0x84,
  CODE_INCOMPLETE = 0x88,
  CODE_TOO_MANY_REQUESTS = 0x9d,
  CODE_BAD_GATEWAY = 0xa2,
  CODE_UNAVAILABLE = 0xa3,
  CODE_GATEWAY_TIMEOUT = 0xa4,
  CODE_PROXYING = 0xa5,
};

static uint32_t now(const struct cd_device *device) {
  return device->port->now_ms(device->port->arg);
}

/* The clock wraps: a time is past if it is less than half the range away. */
static bool is_past(uint32_t time, uint32_t at) {
  return (int32_t)(time - at) <= 0;
}

/* The delays of the settings, in their order there. */
enum { FIRST, RETRY, LONGEST_RETRY, WRONG_KEY, OPERATOR, LONGEST_OPERATOR, HANDSHAKE, ANSWER, DELAYS };

static const uint32_t defaults[DELAYS] = {30 * SECOND, 30 * SECOND, HOUR, 10 * MINUTE, HOUR, DAY, 120 * SECOND, EXCHANGE_LIFETIME};
typedef char cd_settings_end_with_the_delays[offsetof(struct cd_settings, first_delay_ms) + sizeof defaults <=
                                                     sizeof(struct cd_settings)
                                                 ? 1
                                                 : -1];

static void set_delays(struct cd_device *device) {
  memcpy(device->delays, (const char *)device->settings + offsetof(struct cd_settings, first_delay_ms), sizeof defaults);
  for (int i = 0; i < DELAYS; i++) {
    if (device->delays[i] == 0) device->delays[i] = defaults[i];
    if (device->delays[i] > LONGEST_DELAY) device->delays[i] = LONGEST_DELAY;
  }
}

/* Returns a random number of 0 to `most`; `most` if there are none. */
static uint32_t random_up_to(uint32_t most) {
  uint32_t value;
  if (cd_random(&value, sizeof value) < 0) return most;
  return value % (most + 1);
}

/* Returns `first`, doubled `times`, at most `longest`. */
static uint32_t grown(uint32_t first, uint8_t times, uint32_t longest) {
  while (times-- > 0 && first < longest) first *= 2;
  return first < longest ? first : longest;
}

/* --- The end of an attempt --- */

static void count(uint8_t *counter) {
  if (*counter < UINT8_MAX) ++*counter;
}

/* Empties the buffer, which may hold a secret. */
static void clear(struct cd_device *device) {
  cd_wipe(device->buffer, sizeof device->buffer);
  device->used = 0;
}

static void close_session(struct cd_device *device) {
  if (device->session) device->dtls->close(device);
  device->session = false;
  device->leaving = false;
}

/* Leaves the exchange. The session is closed as soon as the back end has returned, or, if it has
 * a separate answer to acknowledge, after LINGER. */
static void leave(struct cd_device *device, bool lingers) {
  device->session_until = now(device) + (lingers ? LINGER : 0);
  device->leaving = true;
}

/* Waits `delay`, and up to half as long again, so that devices that failed together spread. */
static void wait_for(struct cd_device *device, enum cd_state state, uint32_t delay) {
  device->state = (uint8_t)state;
  device->wake_at = now(device) + delay + random_up_to(delay / 2);
}

/* The back-off of failures that pass by themselves. */
static uint32_t next_retry(struct cd_device *device) {
  uint32_t delay = grown(device->delays[RETRY], device->failures, device->delays[LONGEST_RETRY]);
  count(&device->failures);
  return delay;
}

/* Ends the attempt. */
static void rest(struct cd_device *device, enum cd_state state, enum cd_reason reason, uint32_t delay, bool lingers) {
  device->reason = (uint8_t)reason;
  leave(device, lingers);
  wait_for(device, state, delay);
}

static void fail(struct cd_device *device, enum cd_reason reason, bool lingers) {
  uint32_t delay = next_retry(device);
  if (reason == CD_WRONG_KEY && delay < device->delays[WRONG_KEY]) delay = device->delays[WRONG_KEY];
  clear(device);
  device->timed = false;
  rest(device, CD_WAITING, reason, delay, lingers);
}

/* --- Storing --- */

/* Saves the record in the buffer, and reads it back: only what can be read after the next start
 * is stored. */
static bool save(const struct cd_device *device) {
  const struct cd_port *port = device->port;
  uint8_t copy[CD_RECORD_MAX];
  if (port->save(port->arg, device->buffer, device->used) < 0) return false;
  int length = port->load(port->arg, copy, sizeof copy);
  bool same = length == device->used && memcmp(copy, device->buffer, device->used) == 0;
  cd_wipe(copy, sizeof copy);
  return same;
}

/* A certificate that cannot be stored stays in memory and is saved again: the server may refuse to
 * issue it a second time. */
static void store(struct cd_device *device) {
  if (save(device)) {
    device->state = CD_DONE;
    device->reason = CD_ANSWERED;
    device->failures = 0;
    return;
  }
  device->reason = CD_NOT_STORED;
  wait_for(device, CD_STORING, grown(SECOND, device->failures, device->delays[LONGEST_RETRY]));
  count(&device->failures);
}

/* Turns the answer in the buffer into a record. Returns false if it is no certificate. */
static bool make_record(struct cd_device *device) {
  struct cd_certificate certificate;
  memset(&certificate, 0, sizeof certificate);
  int result = cd_cbor_read(device->buffer, device->used, cd_texts, CD_TEXTS, &certificate);
  bool complete = certificate.product_key[0] && certificate.device_name[0] && certificate.device_secret[0];
  clear(device);
  if (result == 0 && complete) device->used = (uint16_t)cd_record_write(&certificate, device->buffer);
  cd_wipe(&certificate, sizeof certificate);
  return device->used > 0;
}

/* --- Answers --- */

/* Keeps the server's sentence, if there is one, in the buffer. */
static void keep_why(struct cd_device *device, const struct cd_message *message) {
  static const struct cd_text why = {NULL, 0, CD_WHY_ROOM};
  clear(device);
  if (message->length == 0 || cd_cbor_read(message->payload, message->length, &why, 1, device->buffer) != 0)
    device->buffer[0] = 0;
}

/* What to do after each code of docs/device.md but 2.05. */
static void take_refusal(struct cd_device *device, const struct cd_message *message, bool lingers) {
  enum cd_state state = CD_WAITING;
  uint32_t delay = 0; /* as after other failures that pass */
  uint8_t refusals = 0;
  switch (message->code) {
    case CODE_TOO_MANY_REQUESTS:
    case CODE_UNAVAILABLE:
      /* The server's time counts, whatever the back-off would be. 0 names no time. */
      delay = message->has_max_age ? message->max_age : default_max_age;
      if (delay > LONGEST_DELAY / SECOND) delay = LONGEST_DELAY / SECOND;
      delay *= SECOND;
      if (delay > 0) device->failures = 0;
      break;
    case CODE_FORBIDDEN:
    case CODE_NOT_FOUND:
      /* Nothing tells the firmware that the operator has acted, so it asks, less and less often. */
      state = CD_STOPPED;
      delay = grown(device->delays[OPERATOR], device->refusals, device->delays[LONGEST_OPERATOR]);
      refusals = device->refusals;
      count(&refusals);
      break;
    case CODE_BAD_GATEWAY:
      delay = device->delays[OPERATOR];
      break;
    case CODE_GATEWAY_TIMEOUT:
      /* The registration continues. The delays begin with the second one, a minute. */
      if (device->failures == 0) device->failures = 1;
      break;
    case CODE_INCOMPLETE:
      break;
    default:
      if (message->code >> 5 == 5 && message->code != CODE_PROXYING) break;
      state = CD_REJECTED;
      delay = device->delays[LONGEST_OPERATOR];
  }
  keep_why(device, message);
  device->refusals = refusals;
  device->timed = delay > 0;
  rest(device, state, CD_ANSWERED, delay > 0 ? delay : next_retry(device), lingers);
}

static void begin_request(struct cd_device *device) {
  device->state = CD_ASKING;
  device->message_id++;
  device->sent = 0;
  device->wake_at = now(device);
}

/* Adds a block, or the whole answer, to the buffer (RFC 7959 section 2.4). Returns false if it
 * cannot be used. */
static bool take_content(struct cd_device *device, const struct cd_message *message, bool lingers) {
  size_t at = 0;
  if (message->has_block) {
    uint32_t size = (uint32_t)16 << message->exponent;
    /* `number` has 20 bits, so this does not overflow. */
    at = message->number * size;
    if (at < device->used) return true; /* a copy of an earlier block */
    if (message->more ? message->length != size : message->length > size) return false;
    if (at > 0 && message->etag != device->etag) return false;
    device->etag = message->etag;
    device->block_exponent = message->exponent;
  }
  if (at != device->used || message->length > sizeof device->buffer - at) return false;
  if (message->length > 0) memcpy(device->buffer + at, message->payload, message->length);
  device->used = (uint16_t)(at + message->length);
  if (message->has_block && message->more) {
    begin_request(device);
    return true;
  }
  if (!make_record(device)) return false;
  device->failures = 0;
  leave(device, lingers);
  store(device);
  return true;
}

static void take_answer(struct cd_device *device, const struct cd_message *message) {
  bool lingers = message->type == CD_CON;
  device->code = message->code;
  if (message->code >> 5 != 2 && !message->bad_option) {
    take_refusal(device, message, lingers);
    return;
  }
  bool is_cbor = message->format < 0 || message->format == 60;
  if (message->bad_option || message->code != CODE_CONTENT || !is_cbor || !take_content(device, message, lingers))
    fail(device, CD_BAD_ANSWER, lingers);
}

/* Sends an empty message (RFC 7252 section 4.1). If it is lost, the server repeats its own. */
static void send_empty(struct cd_device *device, uint8_t type, uint16_t message_id) {
  uint8_t message[4] = {(uint8_t)(0x40 | type << 4), 0, (uint8_t)(message_id >> 8), (uint8_t)message_id};
  (void)device->dtls->send(device, message, sizeof message);
}

void cd_dtls_message(struct cd_device *device, uint8_t *bytes, size_t length) {
  struct cd_message message;
  bool well_formed = cd_coap_read(bytes, length, device->token, &message) == 0;
  bool asks = device->state == CD_ASKING || device->state == CD_REGISTERING;
  bool same_id = message.message_id == device->message_id && device->sent > 0;
  uint8_t class_ = message.code >> 5;
  bool answer = well_formed && message.ours && (class_ == 2 || class_ == 4 || class_ == 5);
  if (device->state == CD_CONNECTING) return;
  switch (message.type) {
    case CD_CON:
      if (!answer) {
        /* Section 4.2: rejected. An empty message is a ping (section 4.3). */
        send_empty(device, CD_RST, message.message_id);
        return;
      }
      /* Stored first: then the server may forget the answer. Copies are acknowledged, too. */
      if (asks) take_answer(device, &message);
      send_empty(device, CD_ACK, message.message_id);
      return;
    case CD_NON:
      if (asks && answer) take_answer(device, &message);
      return;
    case CD_ACK:
      if (!asks || !same_id || !well_formed) return;
      if (answer) {
        take_answer(device, &message);
      } else if (message.code == 0 && device->state == CD_ASKING) {
        /* Section 5.2.2: the answer comes separately; the request is not repeated any more. */
        device->state = CD_REGISTERING;
        device->wake_at = now(device) + device->delays[ANSWER];
      }
      return;
    default:
      /* Section 4.2: a reset is empty. */
      if (device->state == CD_ASKING && same_id && well_formed && message.code == 0) fail(device, CD_REQUEST_REFUSED, false);
  }
}

/* --- Sessions --- */

void cd_dtls_connected(struct cd_device *device) {
  if (device->state == CD_CONNECTING) begin_request(device);
}

void cd_dtls_ended(struct cd_device *device, uint8_t alert) {
  bool connects = device->state == CD_CONNECTING;
  leave(device, false);
  device->alert = alert;
  if (connects || device->state == CD_ASKING || device->state == CD_REGISTERING)
    fail(device, connects && alert == ALERT_DECRYPT_ERROR ? CD_WRONG_KEY : CD_SESSION_ENDED, false);
}

int cd_dtls_send_datagram(struct cd_device *device, const void *datagram, size_t length) {
  return device->port->send(device->port->arg, datagram, length);
}

static void open_session(struct cd_device *device) {
  uint8_t seed[6];
  close_session(device);
  if (device->attempts < UINT16_MAX) device->attempts++;
  clear(device);
  device->code = 0;
  device->alert = 0;
  if (cd_random(seed, sizeof seed) < 0) {
    fail(device, CD_NO_RANDOM, false);
    return;
  }
  memcpy(&device->token, seed, 4);
  memcpy(&device->message_id, seed + 4, 2);
  device->block_exponent = 0;
  while (device->block_exponent < LARGEST_EXPONENT && 32 << device->block_exponent <= device->settings->block_size)
    device->block_exponent++;
  device->state = CD_CONNECTING;
  device->sent = 0;
  device->session = true;
  device->wake_at = now(device) + device->delays[HANDSHAKE];
  if (device->dtls->open(device) < 0 && device->state == CD_CONNECTING) fail(device, CD_SESSION_ENDED, false);
}

/* RFC 7252 section 4.2: the request, and its copies with the same message ID. */
static void send_request(struct cd_device *device) {
  if (device->sent > MAX_RETRANSMIT) {
    fail(device, CD_SILENCE, false);
    return;
  }
  uint8_t request[CD_REQUEST_MAX];
  size_t length = cd_coap_write_request(device, request);
  if (device->sent == 0) device->retransmit_ms = ACK_TIMEOUT + random_up_to(ACK_TIMEOUT / 2);
  else device->retransmit_ms *= 2;
  device->sent++;
  device->wake_at = now(device) + device->retransmit_ms;
  (void)device->dtls->send(device, request, length);
}

static bool rests_for_good(const struct cd_device *device) {
  return device->state == CD_DONE || device->reason == CD_BAD_SETTINGS;
}

/* Does what is due in the present state. */
static void act(struct cd_device *device) {
  switch ((enum cd_state)device->state) {
    case CD_WAITING:
    case CD_STOPPED:
    case CD_REJECTED:
      open_session(device);
      break;
    case CD_ASKING:
      send_request(device);
      break;
    case CD_CONNECTING:
    case CD_REGISTERING:
      fail(device, CD_SILENCE, false);
      break;
    case CD_STORING:
      store(device);
      break;
    case CD_DONE:
      break;
  }
}

/* --- The interface --- */

static bool are_valid(const struct cd_settings *settings, const struct cd_dtls *dtls) {
  if (!settings->identity || !settings->key) return false;
  size_t identity = strlen(settings->identity);
  if (identity < 1 || identity > dtls->identity_max) return false;
  if (settings->key_length < 1 || settings->key_length > dtls->key_max) return false;
  if (settings->device_id && !cd_is_name(settings->device_id, CD_DEVICE_ID_MAX)) return false;
  return !settings->id_kind || cd_is_name(settings->id_kind, sizeof "deviceId" - 1);
}

static void begin(struct cd_device *device) {
  device->state = CD_WAITING;
  device->reason = CD_NO_REASON;
  device->wake_at = now(device) + random_up_to(device->delays[FIRST]);
  device->timed = true;
  if (!are_valid(device->settings, device->dtls)) {
    device->state = CD_REJECTED;
    device->reason = CD_BAD_SETTINGS;
  }
}

enum cd_state cd_start(struct cd_device *device, const struct cd_settings *settings, const struct cd_port *port,
                       const struct cd_dtls *dtls) {
  struct cd_certificate certificate;
  memset(device, 0, sizeof *device);
  device->settings = settings;
  device->port = port;
  device->dtls = dtls;
  set_delays(device);
  int length = port->load(port->arg, device->buffer, CD_RECORD_MAX);
  if (length > 0 && length <= CD_RECORD_MAX && cd_record_read(device->buffer, (size_t)length, &certificate) == 0) {
    device->used = (uint16_t)length;
    device->state = CD_DONE;
  } else {
    clear(device);
    begin(device);
  }
  cd_wipe(&certificate, sizeof certificate);
  return (enum cd_state)device->state;
}

enum cd_state cd_receive(struct cd_device *device, void *datagram, size_t length) {
  if (device->session) device->dtls->receive(device, (uint8_t *)datagram, length);
  return cd_poll(device);
}

enum cd_state cd_poll(struct cd_device *device) {
  /* What is due after a step, such as the request after a handshake, is due in the same call. */
  for (int steps = 0; steps < 4; steps++) {
    uint32_t time = now(device);
    if (device->state == CD_CONNECTING) {
      uint32_t next = device->dtls->timer(device);
      device->timer_at = next < LONGEST_DELAY ? time + next : device->wake_at;
    }
    if (device->leaving && is_past(device->session_until, time)) close_session(device);
    if (rests_for_good(device) || !is_past(device->wake_at, time)) break;
    act(device);
  }
  return (enum cd_state)device->state;
}

static uint32_t until(uint32_t at, uint32_t time) {
  return is_past(at, time) ? 0 : at - time;
}

uint32_t cd_wait_ms(const struct cd_device *device) {
  uint32_t time = now(device), wait = rests_for_good(device) ? CD_FOREVER : until(device->wake_at, time);
  if (device->leaving && until(device->session_until, time) < wait) wait = until(device->session_until, time);
  if (device->state == CD_CONNECTING && until(device->timer_at, time) < wait) wait = until(device->timer_at, time);
  return wait;
}

enum cd_state cd_network_changed(struct cd_device *device) {
  bool active = device->state == CD_CONNECTING || device->state == CD_ASKING || device->state == CD_REGISTERING;
  if (active && (device->state == CD_CONNECTING || !device->dtls->moves(device))) {
    device->state = CD_WAITING;
    device->timed = false;
    close_session(device);
    device->wake_at = now(device) + LONGEST_DELAY;
  }
  if (device->state == CD_WAITING && !device->timed) {
    uint32_t at = now(device) + random_up_to(device->delays[FIRST]);
    if (is_past(at, device->wake_at)) device->wake_at = at;
    /* A network that comes and goes does not shorten the same wait again. */
    device->timed = true;
  }
  return cd_poll(device);
}

void cd_get_report(const struct cd_device *device, struct cd_report *report) {
  memset(report, 0, sizeof *report);
  report->state = (enum cd_state)device->state;
  report->reason = (enum cd_reason)device->reason;
  report->code = device->code;
  report->dtls_alert = device->alert;
  report->attempts = device->attempts;
  report->wait_ms = cd_wait_ms(device);
  /* The buffer has the server's sentence when it has neither blocks nor a record. */
  if (device->used == 0) memcpy(report->why, device->buffer, sizeof report->why - 1);
}

int cd_get_certificate(const struct cd_device *device, struct cd_certificate *certificate) {
  memset(certificate, 0, sizeof *certificate);
  return device->state == CD_DONE ? cd_record_read(device->buffer, device->used, certificate) : -1;
}

int cd_forget(struct cd_device *device) {
  int result = device->port->save(device->port->arg, NULL, 0);
  if (result < 0) return result;
  close_session(device);
  clear(device);
  device->failures = device->refusals = 0;
  begin(device);
  return 0;
}

void cd_stop(struct cd_device *device) {
  close_session(device);
  cd_wipe(device, sizeof *device);
}
