/* CBOR (RFC 8949), as far as the device needs it: reads texts from a map in any valid encoding, and
 * writes short texts. It knows nothing of CoAP and certificates. */
#include "cd_internal.h"

#include <string.h>

enum { UNSIGNED, NEGATIVE, BYTES, TEXT, ARRAY, MAP, TAG, SIMPLE };
enum { INDEFINITE = 31, DEPTH = 8, SELF_DESCRIBED = 55799, KEY_ROOM = 16 };

struct cursor {
  const uint8_t *at, *end;
};

struct head {
  uint8_t major, info;
  uint32_t value; /* not of an indefinite length; UINT32_MAX stands for all that is larger */
};

/* Section 3: the initial byte and its argument. */
static bool read_head(struct cursor *in, struct head *head) {
  if (in->at == in->end) return false;
  head->major = (uint8_t)(*in->at >> 5);
  head->info = *in->at++ & 31;
  head->value = head->info;
  if (head->info < 24) return true;
  if (head->info == INDEFINITE) return head->major >= BYTES && head->major != TAG;
  if (head->info > 27) return false;
  size_t size = (size_t)1 << (head->info - 24);
  if ((size_t)(in->end - in->at) < size) return false;
  for (head->value = 0; size > 0; size--, in->at++)
    head->value = head->value < 1u << 24 ? head->value << 8 | *in->at : UINT32_MAX;
  /* Section 3.3: simple values below 32 have no second byte. */
  return head->major != SIMPLE || head->info != 24 || head->value >= 32;
}

static bool at_break(struct cursor *in) {
  if (in->at == in->end || *in->at != 0xff) return false;
  in->at++;
  return true;
}

/* Reads the string after a head, and copies as many of its bytes as there is room for. `length` gets
 * the length of the whole string. */
static bool read_string(struct cursor *in, const struct head *head, char *out, size_t room, size_t *length) {
  struct head chunk = *head;
  bool one = head->info != INDEFINITE;
  *length = 0;
  for (;;) {
    if (!one) {
      if (at_break(in)) return true;
      /* Section 3.2.3: the chunks have the type of the whole, and definite lengths. */
      if (!read_head(in, &chunk) || chunk.major != head->major || chunk.info == INDEFINITE) return false;
    }
    size_t size = chunk.value;
    if (size > (size_t)(in->end - in->at)) return false;
    for (size_t i = 0; i < size && *length + i < room; i++) out[*length + i] = (char)in->at[i];
    *length += size;
    in->at += size;
    if (one) return true;
  }
}

/* Skips what follows a head. */
static bool skip_rest(struct cursor *in, const struct head *head, int depth) {
  struct head inner;
  size_t length;
  bool open = head->info == INDEFINITE;
  uint32_t items = head->value;
  switch (head->major) {
    case UNSIGNED:
    case NEGATIVE:
      return true;
    case SIMPLE: /* a break that ends nothing is an error */
      return !open;
    case BYTES:
    case TEXT:
      return read_string(in, head, NULL, 0, &length);
    case TAG:
      items = 1;
      break;
    default:
      break;
  }
  if (depth == 0) return false;
  /* Each item takes a byte at least, so a count that is too large ends with the input. */
  int of_item = head->major == MAP ? 2 : 1;
  for (; open || items > 0; items--) {
    if (open && at_break(in)) return true;
    for (int i = 0; i < of_item; i++)
      if (!read_head(in, &inner) || !skip_rest(in, &inner, depth - 1)) return false;
  }
  return true;
}

/* Reads the value of a field. */
static bool read_field(struct cursor *in, const struct head *head, struct cd_field *field) {
  size_t length;
  if (field->found || head->major != TEXT) return false;
  if (!read_string(in, head, field->text, field->room - (size_t)1, &length)) return false;
  if (length >= field->room) {
    if (!field->cut) return false;
    length = field->room - (size_t)1;
  }
  field->text[length] = 0;
  for (size_t i = 0; i < length; i++) {
    if (field->text[i] >= ' ' && field->text[i] <= '~') continue;
    if (!field->cut) return false;
    field->text[i] = '?';
  }
  field->found = true;
  return true;
}

int cd_cbor_read(const uint8_t *bytes, size_t length, struct cd_field *fields, size_t count) {
  struct cursor in = {bytes, bytes + length};
  struct head map, key, value;
  if (!read_head(&in, &map)) return -1;
  if (map.major == TAG && map.value == SELF_DESCRIBED && !read_head(&in, &map)) return -1;
  if (map.major != MAP) return -1;
  bool open = map.info == INDEFINITE;
  for (uint32_t entries = map.value; open || entries > 0; entries--) {
    if (open && at_break(&in)) break;
    char text[KEY_ROOM];
    size_t size = KEY_ROOM;
    struct cd_field *field = NULL;
    if (!read_head(&in, &key)) return -1;
    if (key.major == TEXT ? !read_string(&in, &key, text, sizeof text, &size) : !skip_rest(&in, &key, DEPTH)) return -1;
    for (size_t i = 0; i < count; i++) {
      const char *name = fields[i].key;
      if (name ? key.major == TEXT && size < KEY_ROOM && strlen(name) == size && memcmp(name, text, size) == 0
               : key.major == NEGATIVE && key.value == 0)
        field = &fields[i];
    }
    if (!read_head(&in, &value)) return -1;
    if (field ? !read_field(&in, &value, field) : !skip_rest(&in, &value, DEPTH)) return -1;
  }
  return in.at == in.end ? 0 : -1;
}

uint8_t *cd_cbor_write_text(uint8_t *at, const char *text, size_t length) {
  if (length < 24) {
    *at++ = (uint8_t)(TEXT << 5 | length);
  } else {
    *at++ = TEXT << 5 | 24;
    *at++ = (uint8_t)length;
  }
  memcpy(at, text, length);
  return at + length;
}
