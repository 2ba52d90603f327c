/* Settings of tinydtls 0.8.6 for one client with a pre-shared key. Each of its files, and the back
 * end, is compiled with `-include certdist_tinydtls.h`; ecc.c, session.c, dtls_time.c, dtls_debug.c
 * and dtls_prng_posix.c are not compiled.
 *
 * tinydtls chooses its platform by macros, and every platform that it has brings ECC, threads or
 * printf. The include guards below replace those headers, so that this file is the platform. */
#ifndef CERTDIST_TINYDTLS_H
#define CERTDIST_TINYDTLS_H

#include <assert.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define DTLS_PSK 1
#define DTLSv12 1
#define WITH_SHA256 1
#define DTLS_CHECK_CONTENTTYPE 1
#define DTLS_PEERS_NOHASH 1
#define SHA2_USE_INTTYPES_H 1
#define SHA2_USE_MEMSET_MEMCPY 1
#define HAVE_ASSERT_H 1
#define HAVE_INTTYPES_H 1

/* The longest record that is sent, a request of 130 bytes, with room to spare. Received records are
 * decrypted where they are. The default of 1400 costs more than 1,100 bytes of stack. */
#ifndef DTLS_MAX_BUF
#define DTLS_MAX_BUF 256
#endif

/* The longest identity that the kit accepts. Keys have 16 bytes at most: tinydtls derives its secrets in a
 * buffer that has no room for longer ones. */
#define DTLS_PSK_MAX_CLIENT_IDENTITY_LEN 64

/* tinydtls.h: WITH_LWIP without lwIP's header stands for "no other platform". */
#define WITH_LWIP 1
#define WITH_LWIP_NO_SOCKET 1
#define _LWIP_PLATFORM_

/* sha2.c needs the byte order. */
#ifndef BIG_ENDIAN
#define BIG_ENDIAN 4321
#endif
#ifndef LITTLE_ENDIAN
#define LITTLE_ENDIAN 1234
#endif
#ifndef BYTE_ORDER
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#define BYTE_ORDER BIG_ENDIAN
#else
#define BYTE_ORDER LITTLE_ENDIAN
#endif
#endif

/* session.h: the client has one server, so a session needs no address. */
#define _DTLS_SESSION_H_
typedef struct {
  unsigned char size, addr;
} session_t;
static inline void dtls_session_init(session_t *session) { session->size = session->addr = 0; }
static inline int dtls_session_equals(const session_t *a, const session_t *b) { return (void)a, (void)b, 1; }

/* dtls_time.h: milliseconds. The back end defines both functions. */
#define _DTLS_DTLS_TIME_H_
#define CLOCK_SECOND 1000
#define DTLS_TICKS_PER_SECOND CLOCK_SECOND
typedef uint32_t clock_time_t;
typedef clock_time_t dtls_tick_t;
void dtls_clock_init(void);
void dtls_ticks(dtls_tick_t *now);
#define DTLS_OFFSET_TIME (((clock_time_t)~0) >> 1)
#define DTLS_IS_BEFORE_TIME(A, B) ((clock_time_t)(DTLS_OFFSET_TIME + (B) - (A)) >= DTLS_OFFSET_TIME)

/* dtls_mutex.h: one thread at a time uses the client. */
#define _DTLS_MUTEX_H_
typedef int dtls_mutex_t;
#define DTLS_MUTEX_INITIALIZER 0
#define dtls_mutex_lock(mutex) (*(mutex) = 1)
#define dtls_mutex_trylock(mutex) (*(mutex) = 1)
#define dtls_mutex_unlock(mutex) (*(mutex) = 0)

/* dtls_debug.h: no log. It would contain keys. */
#define _DTLS_DEBUG_H_
typedef int log_t;
#define DTLS_LOG_DEBUG 0
#define DTLS_LOG_INFO 0
#define check_stack() ((void)0)
#define dtls_emerg(...) ((void)0)
#define dtls_alert(...) ((void)0)
#define dtls_crit(...) ((void)0)
#define dtls_warn(...) ((void)0)
#define dtls_notice(...) ((void)0)
#define dtls_info(...) ((void)0)
#define dtls_debug(...) ((void)0)
#define dtls_debug_hexdump(...) ((void)0)
#define dtls_debug_dump(...) ((void)0)
#define dtls_dsrv_log_addr(...) ((void)0)
#define dtls_dsrv_hexdump_log(...) ((void)0)
#define dtls_get_log_level() (-1)
#define dtls_set_log_level(level) ((void)0)

#endif
