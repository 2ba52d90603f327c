/* The device's half of certdist: fetches the device's certificate over PSK-DTLS and CoAP, keeps
 * it, and computes the MQTT sign-in. It has no heap, no thread, no socket and no clock. The
 * firmware passes datagrams and time in, and sends what comes out:
 *
 *   static struct cd_device device;
 *   cd_start(&device, &settings, &port, &cd_dtls_tinydtls);
 *   while (cd_poll(&device) != CD_DONE)
 *     if (wait for a datagram, for at most cd_wait_ms(&device))
 *       cd_receive(&device, datagram, length);
 *
 * docs/firmware.md describes the port, the states and the delays. C99, also C++11. */
#ifndef CERTDIST_H
#define CERTDIST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define CD_VERSION "1.0.0"

/* Room for an answer's payload, in bytes. A longer answer is refused. The buffer also holds the
 * record of the store, so it has at least CD_RECORD_MAX bytes. */
#ifndef CD_ANSWER_MAX
#define CD_ANSWER_MAX 320
#endif
/* Room for the MQTT host, with ":port" and the NUL. */
#ifndef CD_HOST_ROOM
#define CD_HOST_ROOM 129
#endif

enum {
  CD_IDENTITY_MAX = 64,  /* bytes of a PSK identity; fewer if the DTLS stack is configured so */
  CD_KEY_MAX = 64,       /* bytes of a key; also fewer with some stacks */
  CD_DEVICE_ID_MAX = 64, /* characters of a device ID */
  /* Room for texts, with the NUL. */
  CD_PRODUCT_KEY_ROOM = 65,
  CD_DEVICE_NAME_ROOM = 33,
  CD_DEVICE_SECRET_ROOM = 65,
  CD_WHY_ROOM = 64,
  /* The longest record that `save` gets: a version, four texts, a CRC. */
  CD_RECORD_MAX = 1 + CD_PRODUCT_KEY_ROOM + CD_DEVICE_NAME_ROOM + CD_DEVICE_SECRET_ROOM + CD_HOST_ROOM + 4
};

/* The result of cd_wait_ms when nothing is due. */
#define CD_FOREVER UINT32_MAX

struct cd_certificate {
  char product_key[CD_PRODUCT_KEY_ROOM];
  char device_name[CD_DEVICE_NAME_ROOM];
  char device_secret[CD_DEVICE_SECRET_ROOM];
  char host[CD_HOST_ROOM]; /* empty: the server has named none */
};

/* What the device does now. */
enum cd_state {
  CD_WAITING,     /* until cd_wait_ms has passed; the radio may sleep */
  CD_CONNECTING,  /* the handshake */
  CD_ASKING,      /* the request is sent until it is acknowledged */
  CD_REGISTERING, /* acknowledged: the answer follows separately */
  CD_STORING,     /* the certificate is here, but `save` has failed; it is tried again */
  CD_DONE,        /* the certificate is stored */
  CD_STOPPED,     /* 4.03 or 4.04: the operator must act; asked again in an hour, later once a day */
  CD_REJECTED     /* the server does not understand this firmware; asked again once a day */
};

/* Why it is in this state. */
enum cd_reason {
  CD_NO_REASON,
  CD_ANSWERED,        /* the server answered with `code` */
  CD_SILENCE,         /* no handshake, or no answer, within the time */
  CD_WRONG_KEY,       /* alert 51: the server knows no such identity, or has another key */
  CD_SESSION_ENDED,   /* the server or the DTLS stack closed the session */
  CD_REQUEST_REFUSED, /* the server reset the request */
  CD_BAD_ANSWER,      /* 2.05, but no certificate that can be read */
  CD_NOT_STORED,      /* `save` failed, or the record could not be read back */
  CD_NO_RANDOM,       /* cd_random failed */
  CD_BAD_SETTINGS     /* a setting is missing, or too long for the kit or the DTLS stack; final */
};

struct cd_report {
  enum cd_state state;
  enum cd_reason reason;
  uint8_t code;          /* of the newest answer, such as 0x84 for 4.04; 0: none */
  uint8_t dtls_alert;    /* of the newest session, such as 51; 0: none */
  uint16_t attempts;     /* sessions since cd_start; stays at 65535 */
  uint32_t wait_ms;      /* until the next step, as cd_wait_ms */
  char why[CD_WHY_ROOM]; /* the server's sentence (RFC 9290), cut; empty: none */
};

/* The board. Functions that return int return 0, or a negative number for a failure. */
struct cd_port {
  void *arg;
  /* Time in milliseconds that never goes back; it may wrap. */
  uint32_t (*now_ms)(void *arg);
  /* Sends a datagram to the server. A failure counts as a lost datagram. */
  int (*send)(void *arg, const void *datagram, size_t length);
  /* Reads the stored record. Returns its length, or 0 if nothing is stored. */
  int (*load)(void *arg, void *record, size_t room);
  /* Stores a record of up to CD_RECORD_MAX bytes, all of it or nothing, before it returns. Length
   * 0 erases what is stored. cd_flash_load and cd_flash_save do both in two sectors of flash. */
  int (*save)(void *arg, const void *record, size_t length);
};

/* Fills `out` with random bytes of cryptographic quality, such as from the chip's generator.
 * Returns 0, or a negative number. The kit declares this function and does not define it: a board
 * without a real source does not link. ports/ has one for POSIX. */
int cd_random(void *out, size_t length);

/* Settings. A delay of 0 stands for the default in brackets. */
struct cd_settings {
  const char *identity; /* 1 to 64 bytes; the DTLS stack may accept fewer */
  const uint8_t *key;
  size_t key_length;     /* 1 to 64 bytes; the stack may accept fewer: tinydtls accepts 16 */
  const char *device_id; /* 1 to 64 of A-Z a-z 0-9 . _ : @ -; NULL: the identity is the device */
  const char *id_kind;   /* "deviceId", "sn" or "mac"; NULL: "deviceId" */
  uint16_t block_size;   /* asks for blocks of 16, 32, ... 1024 bytes; 0: the server decides */

  uint32_t first_delay_ms;    /* longest random delay after cd_start, so that a crowd spreads [30 s] */
  uint32_t retry_ms;          /* first delay after silence or a passing failure; doubles [30 s] */
  uint32_t longest_retry_ms;  /* at which it stops growing [1 h] */
  uint32_t wrong_key_ms;      /* least delay after alert 51 [10 min] */
  uint32_t operator_ms;       /* after 5.02; first delay after 4.03 and 4.04, which doubles [1 h] */
  uint32_t longest_operator_ms; /* at which that stops growing; after 4.00, 4.05, ... [24 h] */
  uint32_t handshake_ms;      /* a handshake that takes longer is given up [120 s] */
  uint32_t answer_ms;         /* how long a separate answer is waited for [247 s] */
};

/* A DTLS back end. Link the one you name; its stack comes from you. Each keeps its session in
 * static memory, so one device at a time uses it. */
struct cd_dtls;
extern const struct cd_dtls cd_dtls_tinydtls;
extern const struct cd_dtls cd_dtls_mbedtls; /* 2.28 and 3.x */
extern const struct cd_dtls cd_dtls_none;    /* where the socket has DTLS, as Zephyr's */

/* The fields are the kit's own. The device needs no clean-up except cd_stop. */
struct cd_device {
  const struct cd_settings *settings;
  const struct cd_port *port;
  const struct cd_dtls *dtls;
  uint8_t state, reason, code, alert;
  uint8_t failures, refusals, sent, block_exponent;
  bool session, leaving, timed;
  uint16_t message_id;
  uint16_t attempts;
  uint16_t used; /* bytes of `buffer` */
  uint32_t wake_at;
  uint32_t timer_at;
  uint32_t session_until;
  uint32_t retransmit_ms;
  uint32_t etag;
  uint32_t token;
  uint32_t delays[8]; /* of the settings, with the defaults filled in */
  uint8_t buffer[CD_ANSWER_MAX]; /* the answer; later the record, or the server's sentence */
};

/* Starts. If a valid certificate is stored, the state is CD_DONE and no datagram is ever sent.
 * Settings and port must outlive the device. */
enum cd_state cd_start(struct cd_device *, const struct cd_settings *, const struct cd_port *, const struct cd_dtls *);

/* Processes a datagram from the server, and changes its bytes. Returns the new state. */
enum cd_state cd_receive(struct cd_device *, void *datagram, size_t length);

/* Does what is due. Call it when cd_wait_ms has passed; earlier and more often does no harm. */
enum cd_state cd_poll(struct cd_device *);

/* Returns the milliseconds until cd_poll has something to do, or CD_FOREVER. In CD_DONE, a few
 * seconds remain after a separate answer, in which the session acknowledges its copies. */
uint32_t cd_wait_ms(const struct cd_device *);

/* Reports a new network or address: a session that cannot move is replaced, and a wait that the
 * server did not order ends after a random delay of up to first_delay_ms. */
enum cd_state cd_network_changed(struct cd_device *);

/* Fills in the report. */
void cd_get_report(const struct cd_device *, struct cd_report *);

/* Copies the certificate. Returns 0 in CD_DONE, else -1. */
int cd_get_certificate(const struct cd_device *, struct cd_certificate *);

/* Erases the stored certificate (factory reset) and begins again. Returns what `save` did; on a
 * failure the device stays as it is. */
int cd_forget(struct cd_device *);

/* Ends the session and wipes the device. */
void cd_stop(struct cd_device *);

/* Overwrites memory in a way that no compiler leaves out. */
void cd_wipe(void *memory, size_t length);

/* HMAC-SHA256 with a key of any length. Returns 0, or a negative number. */
typedef int cd_hmac(const void *key, size_t key_length, const void *text, size_t length, uint8_t mac[32]);
int cd_hmac_tinydtls(const void *key, size_t key_length, const void *text, size_t length, uint8_t mac[32]);
int cd_hmac_mbedtls(const void *key, size_t key_length, const void *text, size_t length, uint8_t mac[32]);

/* The fields of an MQTT CONNECT to IoT Platform, as texts. */
struct cd_sign_in {
  char host[CD_HOST_ROOM];
  uint16_t port; /* 8883 with TLS, else 1883, or the port that the host ends in */
  char client_id[CD_DEVICE_NAME_ROOM + 40];
  char user_name[CD_DEVICE_NAME_ROOM + CD_PRODUCT_KEY_ROOM];
  char password[65]; /* wipe it after use */
};

/* Computes the sign-in. `where` counts when the certificate has no host: a host name, or a region
 * such as "cn-shanghai" for a public instance from before 2021-07-30. `tls` selects securemode 2,
 * else 3. There is no time stamp: IoT Platform does not need one, and a new device has no clock.
 * Returns 0, or -1 if no host is known, a text is too long or malformed, or `hmac` fails. */
int cd_sign_in(const struct cd_certificate *, const char *where, bool tls, cd_hmac *hmac, struct cd_sign_in *);

/* Two sectors of flash, for boards without a file system. Each slot has `slot_size` bytes, at least
 * CD_FLASH_SLOT_MIN, and is erased as a whole. The functions return 0, or a negative number. */
struct cd_flash {
  void *arg;
  uint32_t slot_size;
  uint16_t write_size; /* unit of a write: 1, 2, 4, 8, 16 or 32 bytes */
  int (*erase)(void *arg, int slot);
  int (*write)(void *arg, int slot, uint32_t at, const void *bytes, size_t length);
  int (*read)(void *arg, int slot, uint32_t at, void *bytes, size_t length);
};
enum { CD_FLASH_SLOT_MIN = 12 + CD_RECORD_MAX + 31 };

/* Both fit `load` and `save` of the port, with a struct cd_flash as `arg`. Power may fail at any
 * byte: the older record stays until the newer one is complete. */
int cd_flash_load(void *flash, void *record, size_t room);
int cd_flash_save(void *flash, const void *record, size_t length);

#ifdef __cplusplus
}
#endif
#endif
