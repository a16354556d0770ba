/* A PKCS#11 module with faults: SoftHSM2's, behind what the folder FAULTY says at each call.

   FAULTY/rules has one rule a line; # begins a comment:

     C_Login return 0x30            doesn't call SoftHSM2's, and returns that
     C_Login 2 return 0x30          the second call alone, counted over all processes
     C_Login after return 0x30      calls SoftHSM2's first
     C_Login crash | hang | delay MS          each also with a number, and with `after`
     C_Login context return 0x0     those of a signature alone, CKU_CONTEXT_SPECIFIC
     C_Sign count                   no fault: it is only noted
     C_Sign exact 64                asked for the length it says 144; any other buffer is CKR_ARGUMENTS_BAD
     flags set 0x100 | clear 0x8    of C_GetTokenInfo
     token serial 3132              of C_GetTokenInfo: label, manufacturer, model or serial; - is a blank one
     mechanism hide 0x1040          of C_GetMechanismList
     attribute NAME 0x3 return 0x6  C_GetAttributeValue, once the template has CKA 0x3, of objects whose
                                    label is NAME; %20 is a blank
     attribute NAME 0x3 value fffe  gives those bytes in place of the right ones; - is none
     attribute NAME 0x3 value ff*99 gives them so many times

   FAULTY/calls gets a line for each C_Login, `C_Login USER_TYPE`, and for each function with a rule;
   FAULTY/callers gets another for each of them, `C_Login PID`. A delay holds up nobody else.
   The numbers are PKCS#11's: section 5.2's order of functions, appendix B's constants. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef unsigned long ulong;
typedef ulong (*function)(ulong, ulong, ulong, ulong, ulong, ulong, ulong, ulong);
struct functions {
  unsigned char version[2];
  function function[68];
};
struct token_info {
  char label[32], manufacturer[32], model[16], serial[16];
  ulong flags, numbers[10];
  unsigned char rest[64];
};
struct attribute {
  ulong type;
  void *value;
  ulong size;
};

enum { GET_FUNCTION_LIST = 3, GET_TOKEN_INFO = 6, GET_MECHANISM_LIST = 7, LOGIN = 18 };
enum { GET_ATTRIBUTE_VALUE = 24, SIGN = 43 };
enum { OK = 0, CONTEXT_SPECIFIC = 2, ARGUMENTS_BAD = 7, BUFFER_TOO_SMALL = 0x150, LABEL = 3 };
enum { MAX_VALUE = 65536, MAX_MANY = 64 };

static const char *const NAMES[68] = {
    "C_Initialize", "C_Finalize", "C_GetInfo", "C_GetFunctionList", "C_GetSlotList", "C_GetSlotInfo",
    "C_GetTokenInfo", "C_GetMechanismList", "C_GetMechanismInfo", "C_InitToken", "C_InitPIN",
    "C_SetPIN", "C_OpenSession", "C_CloseSession", "C_CloseAllSessions", "C_GetSessionInfo",
    "C_GetOperationState", "C_SetOperationState", "C_Login", "C_Logout", "C_CreateObject",
    "C_CopyObject", "C_DestroyObject", "C_GetObjectSize", "C_GetAttributeValue",
    "C_SetAttributeValue", "C_FindObjectsInit", "C_FindObjects", "C_FindObjectsFinal",
    "C_EncryptInit", "C_Encrypt", "C_EncryptUpdate", "C_EncryptFinal", "C_DecryptInit", "C_Decrypt",
    "C_DecryptUpdate", "C_DecryptFinal", "C_DigestInit", "C_Digest", "C_DigestUpdate", "C_DigestKey",
    "C_DigestFinal", "C_SignInit", "C_Sign", "C_SignUpdate", "C_SignFinal", "C_SignRecoverInit",
    "C_SignRecover", "C_VerifyInit", "C_Verify", "C_VerifyUpdate", "C_VerifyFinal",
    "C_VerifyRecoverInit", "C_VerifyRecover", "C_DigestEncryptUpdate", "C_DecryptDigestUpdate",
    "C_SignEncryptUpdate", "C_DecryptVerifyUpdate", "C_GenerateKey", "C_GenerateKeyPair",
    "C_WrapKey", "C_UnwrapKey", "C_DeriveKey", "C_SeedRandom", "C_GenerateRandom",
    "C_GetFunctionStatus", "C_CancelFunction", "C_WaitForSlotEvent"};

static struct functions *softhsm, ours;

static FILE *opened(const char *name, const char *mode) {
  char path[4096];
  snprintf(path, sizeof path, "%s/%s", getenv("FAULTY"), name);
  return fopen(path, mode);
}

static int calls_of(const char *name) {
  char line[128];
  int found = 0;
  FILE *calls = opened("calls", "r");
  while (calls != NULL && fgets(line, sizeof line, calls) != NULL)
    found += strncmp(line, name, strlen(name)) == 0 && strchr(" \n", line[strlen(name)]) != NULL;
  if (calls != NULL) fclose(calls);
  return found;
}

static void note(const char *name, ulong user) {
  FILE *calls = opened("calls", "a");
  if (calls == NULL) abort();
  if (strcmp(name, "C_Login") == 0)
    fprintf(calls, "%s %lu\n", name, user);
  else
    fprintf(calls, "%s\n", name);
  fclose(calls);
  calls = opened("callers", "a");
  if (calls == NULL) abort();
  fprintf(calls, "%s %d\n", name, (int)getpid());
  fclose(calls);
}

/* The words of the next rule that begins with a word; how many. */
static int next_rule(FILE *rules, const char *first, char line[512], char *words[6]) {
  while (rules != NULL && fgets(line, 512, rules) != NULL) {
    int count = 0;
    line[strcspn(line, "#\n")] = 0;
    for (char *word = strtok(line, " "); word != NULL && count < 6; word = strtok(NULL, " "))
      words[count++] = word;
    if (count > 0 && strcmp(words[0], first) == 0) return count;
  }
  return 0;
}

static int bytes_of(const char *hex, unsigned char *bytes) {
  int size = 0, times = 1;
  unsigned byte;
  for (; sscanf(hex, "%2x", &byte) == 1; hex += 2) bytes[size++] = byte;
  if (sscanf(hex, "*%d", &times) != 1) return size;
  for (int n = 1; n < times && size * (n + 1) <= MAX_VALUE; n++) memcpy(bytes + n * size, bytes, size);
  return size * times;
}

static int is_labelled(ulong session, ulong object, const char *rule) {
  char label[256], name[256];
  size_t size = 0;
  for (; *rule != 0; rule++, size++) {
    int blank = strncmp(rule, "%20", 3) == 0;
    name[size] = blank ? ' ' : *rule;
    rule += blank ? 2 : 0;
  }
  struct attribute wanted = {LABEL, label, sizeof label};
  ulong result = softhsm->function[GET_ATTRIBUTE_VALUE](session, object, (ulong)&wanted, 1, 0, 0, 0, 0);
  return result == OK && wanted.size == size && memcmp(label, name, wanted.size) == 0;
}

static int others_fit(const struct attribute *given, ulong many, ulong but) {
  for (ulong n = 0; n < many; n++)
    if (n != but && given[n].size == (ulong)-1) return 0;
  return 1;
}

static ulong spoilt_attributes(ulong session, ulong object, struct attribute *given, ulong many,
                               const ulong room[MAX_MANY], ulong result) {
  char line[512], *words[6];
  static unsigned char bytes[MAX_VALUE];
  FILE *rules = opened("rules", "r");
  int count;
  while ((count = next_rule(rules, "attribute", line, words)) > 0) {
    ulong type = strtoul(words[2], NULL, 0);
    for (ulong n = 0; n < many && n < MAX_MANY; n++) {
      if (given[n].type != type || !is_labelled(session, object, words[1])) continue;
      if (strcmp(words[3], "return") == 0) {
        given[n].size = (ulong)-1;
        result = strtoul(words[4], NULL, 0);
        continue;
      }
      ulong size = bytes_of(words[4], bytes);
      if (result == BUFFER_TOO_SMALL && others_fit(given, many, n)) result = OK;
      if (given[n].value != NULL) {
        if (room[n] < size) result = BUFFER_TOO_SMALL;
        else memcpy(given[n].value, bytes, size);
      }
      given[n].size = size;
    }
  }
  if (rules != NULL) fclose(rules);
  return result;
}

static void spoil_token(struct token_info *info) {
  char line[512], *words[6];
  FILE *rules = opened("rules", "r");
  while (next_rule(rules, "flags", line, words) > 0) {
    ulong mask = strtoul(words[2], NULL, 0);
    if (strcmp(words[1], "set") == 0) info->flags |= mask;
    else info->flags &= ~mask;
  }
  if (rules != NULL) rewind(rules);
  while (next_rule(rules, "token", line, words) > 0) {
    static unsigned char bytes[MAX_VALUE];
    char *text = info->label;
    size_t room = sizeof info->label, size = bytes_of(words[2], bytes);
    if (strcmp(words[1], "manufacturer") == 0) text = info->manufacturer;
    if (strcmp(words[1], "model") == 0) text = info->model, room = sizeof info->model;
    if (strcmp(words[1], "serial") == 0) text = info->serial, room = sizeof info->serial;
    memset(text, ' ', room);
    memcpy(text, bytes, size < room ? size : room);
  }
  if (rules != NULL) fclose(rules);
}

static void hide_mechanisms(ulong *found, ulong *count) {
  char line[512], *words[6];
  FILE *rules = opened("rules", "r");
  while (found != NULL && next_rule(rules, "mechanism", line, words) > 0) {
    ulong hidden = strtoul(words[2], NULL, 0), kept = 0;
    for (ulong n = 0; n < *count; n++)
      if (found[n] != hidden) found[kept++] = found[n];
    *count = kept;
  }
  if (rules != NULL) fclose(rules);
}

static ulong real(int number, const ulong a[8]) {
  ulong room[MAX_MANY] = {0};
  for (ulong n = 0; number == GET_ATTRIBUTE_VALUE && n < a[3] && n < MAX_MANY; n++)
    room[n] = ((struct attribute *)a[2])[n].size;
  ulong result = softhsm->function[number](a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]);
  if (number == GET_TOKEN_INFO && result == OK) spoil_token((struct token_info *)a[1]);
  if (number == GET_MECHANISM_LIST && result == OK) hide_mechanisms((ulong *)a[1], (ulong *)a[2]);
  if (number == GET_ATTRIBUTE_VALUE)
    result = spoilt_attributes(a[0], a[1], (struct attribute *)a[2], a[3], room, result);
  return result;
}

static ulong faulty(int number, const ulong a[8]) {
  char line[512], *words[6], **word = words;
  FILE *rules = opened("rules", "r");
  int count, done = 0;
  ulong result = OK;
  while ((count = next_rule(rules, NAMES[number], line, words)) > 0) {
    int nth = count > 1 ? atoi(words[1]) : 0;
    int context = count > 1 && strcmp(words[1], "context") == 0;
    if ((nth > 0 && calls_of(NAMES[number]) + 1 != nth) || (context && a[1] != CONTEXT_SPECIFIC)) {
      note(NAMES[number], a[1]);
      count = -1;
    }
    break;
  }
  if (rules != NULL) fclose(rules);
  if (count > 0 || (count == 0 && number == LOGIN)) note(NAMES[number], a[1]);
  if (count <= 0) return real(number, a);
  word = words + 1;
  if (atoi(*word) > 0 || strcmp(*word, "context") == 0) word++;
  if (strcmp(*word, "after") == 0) {
    result = real(number, a);
    done = 1;
    word++;
  }
  if (strcmp(*word, "crash") == 0) *(volatile int *)NULL = 0;
  if (strcmp(*word, "hang") == 0)
    for (;;) sleep(1000);
  if (strcmp(*word, "delay") == 0) usleep(1000 * atoi(word[1]));
  if (strcmp(*word, "exact") == 0 && number == SIGN) {
    ulong *size = (ulong *)a[4];
    if (a[3] == 0) return *size = 144, OK;
    if (*size != strtoul(word[1], NULL, 0)) return ARGUMENTS_BAD;
  }
  if (strcmp(*word, "return") == 0) return strtoul(word[1], NULL, 0);
  return done ? result : real(number, a);
}

#define WRAP(n)                                                                                  \
  static ulong f##n(ulong a, ulong b, ulong c, ulong d, ulong e, ulong f, ulong g, ulong h) {    \
    return faulty(n, (ulong[8]){a, b, c, d, e, f, g, h});                                        \
  }
#define TEN(m, t) m(t##0) m(t##1) m(t##2) m(t##3) m(t##4) m(t##5) m(t##6) m(t##7) m(t##8) m(t##9)
#define ALL(m) TEN(m, ) TEN(m, 1) TEN(m, 2) TEN(m, 3) TEN(m, 4) TEN(m, 5) m(60) m(61) m(62) m(63) \
  m(64) m(65) m(66) m(67)
ALL(WRAP)

static ulong get_function_list(ulong list, ulong b, ulong c, ulong d, ulong e, ulong f, ulong g,
                               ulong h) {
  (void)b, (void)c, (void)d, (void)e, (void)f, (void)g, (void)h;
  *(struct functions **)list = &ours;
  return OK;
}

ulong C_GetFunctionList(struct functions **list) {
  void *library = dlopen("/usr/lib/softhsm/libsofthsm2.so", RTLD_NOW | RTLD_LOCAL);
  ulong (*get)(struct functions **) = dlsym(library, "C_GetFunctionList");
  ulong result = get(&softhsm);
  ours = *softhsm;
#define PUT(n) ours.function[n] = f##n;
  ALL(PUT)
  ours.function[GET_FUNCTION_LIST] = get_function_list;
  *list = &ours;
  return result;
}
