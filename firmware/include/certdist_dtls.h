/* What a DTLS back end and the core ask of each other. Only back ends include this header. */
#ifndef CERTDIST_DTLS_H
#define CERTDIST_DTLS_H

#include "certdist.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A back end. It sends with cd_dtls_send_datagram and never closes a session by itself: the core
 * calls `close` after each failure, and never from inside another function of the back end. */
struct cd_dtls {
  /* Begins a handshake. Returns 0, or a negative number. */
  int (*open)(struct cd_device *);
  /* Processes a datagram; calls the functions below. */
  void (*receive)(struct cd_device *, uint8_t *datagram, size_t length);
  /* Repeats a flight if it is due. Returns the milliseconds until the next one, or CD_FOREVER. */
  uint32_t (*timer)(struct cd_device *);
  /* Sends a message in the session; may change it. Returns 0, or a negative number. */
  int (*send)(struct cd_device *, uint8_t *message, size_t length);
  /* Ends the session, with close_notify if it was connected, and wipes its keys. */
  void (*close)(struct cd_device *);
  /* Whether a session continues from a new address (RFC 9146), of a connected session. */
  bool (*moves)(struct cd_device *);
  /* The longest identity and key in bytes that the stack accepts in its configuration, at most
   * CD_IDENTITY_MAX and CD_KEY_MAX. With a longer one, the device does not start. */
  uint8_t identity_max, key_max;
};
/* A stack's own limit, or the kit's if that is lower. */
#define CD_AT_MOST(limit, most) ((limit) < (most) ? (limit) : (most))

/* The handshake is complete. */
void cd_dtls_connected(struct cd_device *);
/* The session delivers a message. */
void cd_dtls_message(struct cd_device *, uint8_t *message, size_t length);
/* The session has ended, by an alert or, with 0, for another reason. */
void cd_dtls_ended(struct cd_device *, uint8_t alert);
/* Sends a datagram. Returns 0, or a negative number. */
int cd_dtls_send_datagram(struct cd_device *, const void *datagram, size_t length);

#ifdef __cplusplus
}
#endif
#endif
