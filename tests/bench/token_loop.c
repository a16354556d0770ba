/* Signatures of a PKCS#11 module and nothing else: token_loop MODULE LABEL PIN_FILE [apart]

   Signs with the first private key of the token with that label. For each line `COUNT PAUSE` of
   standard input it makes so many ECDSA signatures, with so many microseconds between them, and
   writes COUNT + 1 numbers of 64 bits: the nanoseconds that each took, and those of all together.

   With `apart` a second process has the module, and a third passes on what the first asks for and
   what the second answers, in as many bytes as a client, the agent and a signer do. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

typedef unsigned long ulong;
typedef ulong (*function)();
struct functions {
  unsigned char version[2];
  function function[68];
};
struct token_info {
  char label[32];
  unsigned char rest[256];
};
struct mechanism {
  ulong type;
  void *parameter;
  ulong size;
};

/* PKCS#11 section 5.2's order of functions. */
enum { INITIALIZE = 0, GET_SLOT_LIST = 4, GET_TOKEN_INFO = 6, OPEN_SESSION = 12, LOGIN = 18 };
enum { FIND_OBJECTS_INIT = 26, FIND_OBJECTS = 27, SIGN_INIT = 42, SIGN = 43 };
enum { CLASS = 0, PRIVATE_KEY = 3, USER = 1, SERIAL_SESSION = 4, ECDSA = 0x1041, MAX_SLOTS = 64 };

static struct functions *module;

#define CALL(n, ...)                                                        \
  do {                                                                      \
    ulong result = module->function[n](__VA_ARGS__);                        \
    if (result != 0) {                                                      \
      fprintf(stderr, "token_loop: function %d: error 0x%lx\n", n, result); \
      exit(1);                                                              \
    }                                                                       \
  } while (0)

static uint64_t now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * 1000000000ull + time.tv_nsec;
}

static ulong slot_of(const char *label) {
  ulong slots[MAX_SLOTS], count = MAX_SLOTS;
  char wanted[33];
  struct token_info info;
  snprintf(wanted, sizeof wanted, "%-32s", label);
  CALL(GET_SLOT_LIST, (ulong)1, slots, &count);
  for (ulong n = 0; n < count; n++) {
    CALL(GET_TOKEN_INFO, slots[n], &info);
    if (memcmp(info.label, wanted, sizeof info.label) == 0) return slots[n];
  }
  fprintf(stderr, "token_loop: no token %s\n", label);
  exit(1);
}

static ulong opened(const char *label, const char *pin_file) {
  ulong session;
  char pin[256] = "";
  FILE *file = fopen(pin_file, "r");
  if (file == NULL || fgets(pin, sizeof pin, file) == NULL) exit(1);
  fclose(file);
  CALL(OPEN_SESSION, slot_of(label), (ulong)SERIAL_SESSION, NULL, NULL, &session);
  CALL(LOGIN, session, (ulong)USER, pin, (ulong)strcspn(pin, "\n"));
  return session;
}

static ulong found(ulong session) {
  ulong class = PRIVATE_KEY, key, count;
  struct { ulong type; void *value; ulong size; } wanted = {CLASS, &class, sizeof class};
  CALL(FIND_OBJECTS_INIT, session, &wanted, (ulong)1);
  CALL(FIND_OBJECTS, session, &key, (ulong)1, &count);
  if (count != 1) exit(1);
  CALL(FIND_OBJECTS + 1, session);
  return key;
}

static ulong session, key;

static void open_token(char **words) {
  void *library = dlopen(words[1], RTLD_NOW | RTLD_LOCAL);
  if (library == NULL) {
    fprintf(stderr, "token_loop: %s\n", dlerror());
    exit(1);
  }
  ulong (*list)(struct functions **) = (ulong (*)(struct functions **))dlsym(library, "C_GetFunctionList");
  if (list == NULL || list(&module) != 0) exit(1);
  CALL(INITIALIZE, NULL);
  session = opened(words[2], words[3]);
  key = found(session);
}

static void sign(uint64_t what) {
  struct mechanism mechanism = {ECDSA, NULL, 0};
  unsigned char digest[32] = {0}, signature[256];
  ulong size = sizeof signature;
  memcpy(digest, &what, sizeof what);
  CALL(SIGN_INIT, session, &mechanism, key);
  CALL(SIGN, session, digest, (ulong)sizeof digest, signature, &size);
}

/* A request for a proof and its answer, a signing input and its signature. */
enum { REQUEST = 140, ANSWER = 700, SIGNING_INPUT = 380, SIGNATURE = 73 };

static void pass(int socket, ulong size) {
  static char data[1024];
  if (send(socket, data, size, 0) != (long)size) exit(1);
}

static int got(int socket, ulong size) {
  static char data[1024];
  return recv(socket, data, size, MSG_WAITALL) == (long)size;
}

static int begin_apart(char **words) {
  int to_relay[2], to_signer[2];
  if (socketpair(AF_UNIX, SOCK_STREAM, 0, to_relay) || socketpair(AF_UNIX, SOCK_STREAM, 0, to_signer))
    exit(1);
  if (fork() == 0) {
    close(to_relay[0]), close(to_relay[1]), close(to_signer[0]);
    open_token(words);
    while (got(to_signer[1], SIGNING_INPUT)) sign(now()), pass(to_signer[1], SIGNATURE);
    exit(0);
  }
  if (fork() == 0) {
    close(to_relay[0]), close(to_signer[1]);
    while (got(to_relay[1], REQUEST)) {
      pass(to_signer[0], SIGNING_INPUT);
      if (!got(to_signer[0], SIGNATURE)) exit(1);
      pass(to_relay[1], ANSWER);
    }
    exit(0);
  }
  close(to_relay[1]), close(to_signer[0]), close(to_signer[1]);
  return to_relay[0];
}

int main(int count, char **words) {
  if (count != 4 && !(count == 5 && strcmp(words[4], "apart") == 0)) return 2;
  int relay = count == 5 ? begin_apart(words) : -1;
  if (relay < 0) open_token(words);

  ulong many, pause;
  while (scanf("%lu %lu", &many, &pause) == 2) {
    uint64_t *took = calloc(many + 1, sizeof *took), began = now();
    for (ulong n = 0; n < many; n++) {
      if (pause > 0) usleep(pause);
      uint64_t start = now();
      if (relay < 0) sign(start);
      else if (pass(relay, REQUEST), !got(relay, ANSWER)) return 1;
      took[n] = now() - start;
    }
    took[many] = now() - began;
    fwrite(took, sizeof *took, many + 1, stdout);
    fflush(stdout);
    free(took);
  }
  return 0;
}
