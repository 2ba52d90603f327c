/* The CBOR decoder: what is valid, in any encoding, and what is not. */
#include "world.h"

static struct texts {
  char product[8], name[8], why[8];
} got;

static int read_hex(const char *hex) {
  uint8_t bytes[256];
  size_t length = 0;
  for (; hex[0] && hex[1]; hex += 2) {
    while (*hex == ' ') hex++;
    unsigned byte = 0;
    CHECK(length < sizeof bytes && sscanf(hex, "%2x", &byte) == 1);
    bytes[length++] = (uint8_t)byte;
  }
  static const struct cd_text texts[] = {
      {"p", offsetof(struct texts, product), 5},
      {"name", offsetof(struct texts, name), 5},
      {NULL, offsetof(struct texts, why), 5},
  };
  memset(&got, 0, sizeof got);
  uint8_t *copy = (uint8_t *)malloc(length ? length : 1);
  memcpy(copy, bytes, length);
  int result = cd_cbor_read(copy, length, texts, 3, &got);
  free(copy);
  return result;
}

#define IS(hex, p, n) CHECK(read_hex(hex) == 0 && strcmp(got.product, p) == 0 && strcmp(got.name, n) == 0)
#define REFUSED(hex) CHECK(read_hex(hex) < 0)

void any_valid_encoding_is_read(void) {
  IS("a0", "", "");
  IS("a1 6170 6178", "x", "");
  IS("a2 6170 6178 646e616d65 6479797979", "x", "yyyy");
  IS("a2 646e616d65 6179 6170 6178", "x", "y");                     /* any order */
  IS("bf 6170 6178 646e616d65 6179 ff", "x", "y");                  /* a map of indefinite length */
  IS("bf ff", "", "");
  IS("b80178 0170 7801 78", "x", "");                               /* lengths in more bytes than needed */
  IS("b90001 790001 70 7a00000001 78", "x", "");
  IS("bb0000000000000001 7b0000000000000001 70 6178", "x", "");
  IS("a1 6170 7f 6178 60 627979 ff", "xyy", "");                    /* a text in chunks */
  IS("a1 7f 626e61 626d65 ff 6178", "", "x");                       /* a key in chunks */
  IS("a1 6170 7fff", "", "");
  IS("d9d9f7 a1 6170 6178", "x", "");                               /* self-described CBOR */
}

void unknown_entries_are_skipped(void) {
  IS("a2 6161 00 6170 6178", "x", "");
  IS("a2 00 6178 6170 6178", "x", "");                              /* keys of other types */
  IS("a2 4170 6179 6170 6178", "x", "");                            /* bytes are not text */
  IS("a2 80 6179 6170 6178", "x", "");
  IS("a2 a1 0102 6179 6170 6178", "x", "");
  IS("a2 f6 f5 6170 6178", "x", "");
}

void values_of_any_type_are_skipped(void) {
  static const char *const values[] = {
      "17", "1818", "190100", "1a00010000", "1bffffffffffffffff", "37", "3903e7", "3bffffffffffffffff", /* integers */
      "f90000", "fa47c35000", "fb3ff199999999999a", "f4", "f7", "f0", "f8ff",                           /* floats, simple values */
      "40", "4401020304", "5f42010243030405ff", "62c3bc", "7f61786179ff",                               /* strings */
      "80", "83010203", "9f0102ff", "8301820203820405", "9f01820203 9f0405ff ff",                       /* arrays */
      "a0", "a201020304", "bf61610161629f0203ffff", "c074323031332d30332d32315432303a30343a30305a", "d82076687474703a2f2f7777772e6578616d706c652e636f6d", "c1fb41d452d9e8200000",
      "8181818181818100", /* nested seven deep */
  };
  for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
    char hex[256];
    snprintf(hex, sizeof hex, "a2 6161 %s 6170 6178", values[i]);
    IS(hex, "x", "");
    snprintf(hex, sizeof hex, "bf %s 00 6170 6178 ff", values[i]);
    IS(hex, "x", "");
  }
}

void what_is_not_valid_is_refused(void) {
  REFUSED("");
  REFUSED("80");
  REFUSED("6170");
  REFUSED("f6");
  REFUSED("c0 a0");                              /* another tag */
  REFUSED("a1 6170 6178 00");                    /* bytes after the map */
  REFUSED("a2 6170 6178");                       /* fewer entries than announced */
  REFUSED("bf 6170 6178");                       /* no break */
  REFUSED("bf 6170 ff");                         /* a key without a value */
  REFUSED("a1 ff 6178");
  REFUSED("a1 6170 ff");
  REFUSED("a1 6161 81ff");                       /* a break in a definite array */
  REFUSED("a1 6161 bf00ffff");
  REFUSED("bf 6161 bf00ff ff");                  /* an odd inner map */
  REFUSED("a1 6170 7f 4178 ff");                 /* a chunk of another type */
  REFUSED("a1 6170 7f 7f6178ff ff");             /* a chunk of indefinite length */
  REFUSED("a1 6170 7f 6178");
  REFUSED("a1 6161 1c"); REFUSED("a1 6161 3d"); REFUSED("a1 6161 fe"); /* reserved */
  REFUSED("a1 6161 1f"); REFUSED("a1 6161 3f"); REFUSED("a1 6161 df00"); /* no such indefinite length */
  REFUSED("a1 6161 f818");                       /* a simple value in two bytes */
  REFUSED("a1 6161 5bffffffffffffffff00");       /* longer than the input */
  REFUSED("a1 6161 9bffffffffffffffff00");
  REFUSED("a1 6161 bb800000000000000000");
  REFUSED("bbffffffffffffffff");
  REFUSED("a1 6161 81818181818181818100");       /* too deep */
  REFUSED("a1 6161 9f9f9f9f9f9f9f9f9fffffffffffffffffff");
  REFUSED("a1 6161 c0c0c0c0c0c0c0c0c000");
}

void a_field_that_is_wrong_is_refused(void) {
  REFUSED("a1 6170 00");                         /* not text */
  REFUSED("a1 6170 4178");
  REFUSED("a2 6170 6178 6170 6178");             /* twice */
  REFUSED("a1 6170 657878787878");               /* too long */
  REFUSED("a1 6170 7f 637878 78 627878 ff");
  REFUSED("a1 6170 6100"); REFUSED("a1 6170 610a"); REFUSED("a1 6170 617f"); REFUSED("a1 6170 62c3bc");
  CHECK(read_hex("a1 6170 6120") == 0);
}

void a_sentence_is_cut_and_cleaned(void) {
  CHECK(read_hex("a1 20 6678797a787978") == 0 && strcmp(got.why, "xyzx") == 0);
  CHECK(read_hex("a1 20 63780ac3") == 0 && strcmp(got.why, "x??") == 0);
  CHECK(read_hex("a2 21 6178 20 6179") == 0 && strcmp(got.why, "y") == 0);
}

/* A map of a million entries in a few bytes is no work. */
void large_counts_end_with_the_input(void) {
  REFUSED("ba000f4240 6170 6178");
  REFUSED("a1 6161 9a7fffffff 9a7fffffff 9a7fffffff 00");
}
