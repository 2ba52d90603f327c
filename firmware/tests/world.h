/* A device in a world of virtual time: its clock, its random numbers, its store, a DTLS back end
 * that a test steers, and what the device has sent. */
#ifndef WORLD_H
#define WORLD_H

#include "../src/cd_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition) ((condition) ? (void)0 : world_failed(__FILE__, __LINE__, #condition))
void world_failed(const char *file, int line, const char *condition);

enum { SENT_MAX = 64, MESSAGE_MAX = 1400 };
enum { SECONDS = 1000, MINUTES = 60 * SECONDS, HOURS = 60 * MINUTES };

extern struct world {
  struct cd_device device;
  struct cd_settings settings;
  struct cd_port port;
  uint64_t now; /* ms since the start; the device's clock begins at `clock_offset` */
  uint32_t clock_offset;
  uint64_t random;
  bool no_random;

  uint8_t record[512];
  int record_length, saves, failing_saves;
  bool forgets;             /* save reports success and stores nothing */
  int sent_at_save;         /* messages sent before the newest save */
  enum cd_state state_at_save;

  struct {
    uint8_t bytes[256];
    size_t length;
    uint64_t at;
  } sent[SENT_MAX]; /* the newest ones, by number modulo SENT_MAX */
  int sent_count, opened, closed, flights;
  uint64_t opened_at;

  uint16_t server_id; /* the newest message ID of the server */
  bool connects_at_once, cannot_open, moves;
} world;

/* Begins anew, with an empty store. The device is not started. */
void world_begin(uint64_t seed);
enum cd_state world_start(void);
/* Starts, and waits until the request has been sent. */
void world_ask(void);
/* Lets time pass; the device is polled whenever it wants to be. */
void world_pass(uint64_t ms);
/* Lets time pass until the device opens another session. Returns how long that took; fails after
 * `most` ms. */
uint64_t world_until_next_session(uint64_t most);
enum cd_state world_deliver(const uint8_t *bytes, size_t length);
struct cd_report world_report(void);
uint64_t world_random(void);

/* The newest message that was sent. */
const uint8_t *last(void);
uint16_t id_of(const uint8_t *message);

/* A message to the device. */
struct message {
  uint8_t bytes[MESSAGE_MAX];
  size_t length;
  uint32_t option;
};
struct message message_with(uint8_t type, uint8_t code, uint16_t id, uint32_t token);
void add_option(struct message *, uint32_t number, uint64_t value, size_t size);
void add_payload(struct message *, const void *payload, size_t length);
/* The acknowledgement of the newest request, with an answer. */
struct message piggybacked(uint8_t code);
/* A separate, confirmable answer to the newest request. */
struct message separate(uint8_t code, uint16_t id);
enum cd_state deliver(const struct message *);

/* {"productKey": "a1BwAGVxyz2", "deviceName": "PLUG0001", "deviceSecret": "9d85...", "host": ...} */
extern const uint8_t certificate_cbor[];
extern const size_t certificate_cbor_length;
/* The right certificate is in the device and in the store. */
bool has_certificate(void);

/* Returns another message ID of the server. */
uint16_t next_id(void);

#endif
