/* wolfSSL as a device's firmware would build it: DTLS 1.2 with pre-shared keys,
 * ECDHE and connection IDs, and little else. It is random from /dev/urandom,
 * which is why the file system is not left out. */
#define WOLFSSL_DTLS
#define WOLFSSL_DTLS_CID
#define WOLFSSL_STATIC_PSK
#define HAVE_TLS_EXTENSIONS
#define HAVE_EXTENDED_MASTER
#define HAVE_MAX_FRAGMENT
#define HAVE_SUPPORTED_CURVES
#define HAVE_ECC
#define HAVE_CURVE25519
#define HAVE_AESGCM
#define HAVE_AESCCM
#define WOLFSSL_SP_MATH_ALL
#define ECC_TIMING_RESISTANT
#define HAVE_HASHDRBG
#define NO_OLD_TLS
#define NO_RSA
#define NO_DH
#define NO_DSA
#define NO_DES3
#define NO_RC4
#define NO_MD4
#define NO_MD5
#define NO_PWDBASED
#define NO_SESSION_CACHE
