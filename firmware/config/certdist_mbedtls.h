/* Settings of mbedTLS 3 for one client with a pre-shared key: -DMBEDTLS_CONFIG_FILE='"certdist_mbedtls.h"'.
 * One suite (TLS_PSK_WITH_AES_128_CCM_8), DTLS 1.2, short records.
 * For MQTT over TLS, add what your broker's certificate needs; that costs 40 KB of flash. */
#ifndef CERTDIST_MBEDTLS_H
#define CERTDIST_MBEDTLS_H

#define MBEDTLS_SSL_CLI_C
#define MBEDTLS_SSL_TLS_C
#define MBEDTLS_SSL_PROTO_TLS1_2
#define MBEDTLS_SSL_PROTO_DTLS
#define MBEDTLS_SSL_DTLS_ANTI_REPLAY
#define MBEDTLS_SSL_DTLS_CONNECTION_ID
#define MBEDTLS_SSL_EXTENDED_MASTER_SECRET
#define MBEDTLS_KEY_EXCHANGE_PSK_ENABLED
#define MBEDTLS_SSL_CIPHERSUITES MBEDTLS_TLS_PSK_WITH_AES_128_CCM_8

/* The longest records, without their headers. The kit takes answers of up to CD_ANSWER_MAX bytes (320), so
 * it does not negotiate shorter records (RFC 6066): mbedTLS would need both buffers of the negotiated
 * length. */
#define MBEDTLS_SSL_IN_CONTENT_LEN 512
#define MBEDTLS_SSL_OUT_CONTENT_LEN 256
#define MBEDTLS_SSL_DTLS_MAX_BUFFERING 512
/* certdist's connection IDs have 8 bytes; the client's own is empty. */
#define MBEDTLS_SSL_CID_IN_LEN_MAX 0
#define MBEDTLS_SSL_CID_OUT_LEN_MAX 16
#define MBEDTLS_SSL_CID_TLS1_3_PADDING_GRANULARITY 1
/* The longest key that certdist accepts. During a handshake, the stack keeps a secret that is twice as
 * long. */
#define MBEDTLS_PSK_MAX_LEN 64

#define MBEDTLS_AES_C
#define MBEDTLS_AES_FEWER_TABLES
#define MBEDTLS_AES_ONLY_128_BIT_KEY_LENGTH
#define MBEDTLS_AES_ROM_TABLES
#define MBEDTLS_BLOCK_CIPHER_NO_DECRYPT
#define MBEDTLS_CCM_C
#define MBEDTLS_CIPHER_C
#define MBEDTLS_MD_C
#define MBEDTLS_SHA256_C
#define MBEDTLS_SHA256_SMALLER
/* Random numbers come from cd_random, so there is no entropy pool and no generator. Without PSA:
 * its key store would cost 30 KB of flash. */
#define MBEDTLS_NO_PLATFORM_ENTROPY
/* Memory comes from calloc, 3 KB at most. Where there is no heap, add MBEDTLS_PLATFORM_C,
 * MBEDTLS_PLATFORM_MEMORY and MBEDTLS_MEMORY_BUFFER_ALLOC_C, and give the arena 4 KB. */

#endif
