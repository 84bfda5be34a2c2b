/*
 * A plugin of strongSwan 6.0.1 with ML-KEM-768 by OpenSSL 3.5. Debian 13 has both, but its strongSwan is built without the plugin "ml",
 * whose name this one takes. Its headers are in no package: what follows are the parts of its binary interface that it needs.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
	uint8_t *ptr;
	size_t len;
} chunk;

enum { FEATURE_PROVIDE = 0, FEATURE_REGISTER = 3, FEATURE_KE = 9, ML_KEM_768 = 36 };

typedef struct {
	int kind, type;
	union {
		int ke;
		struct {
			bool final;
			void *f;
		} reg;
		struct {
			void *f, *data;
		} cb;
	} arg;
} feature;

typedef struct plugin plugin;
struct plugin {
	char *(*get_name)(plugin *);
	int (*get_features)(plugin *, feature **);
	bool (*reload)(plugin *);
	void (*destroy)(plugin *);
};

typedef struct ke ke;
struct ke {
	bool (*get_shared_secret)(ke *, chunk *);
	bool (*set_public_key)(ke *, chunk);
	bool (*get_public_key)(ke *, chunk *);
	bool (*set_seed)(ke *, chunk, void *);
	int (*get_method)(ke *);
	void (*destroy)(ke *);

	void *key;                          /* the initiator's */
	uint8_t sent[1184], secret[32];     /* the encapsulation key, or the ciphertext */
	size_t sent_len, secret_len;
};

/* Of libcrypto. */
void *EVP_PKEY_Q_keygen(void *, const char *, const char *, ...);
void *EVP_PKEY_new_raw_public_key_ex(void *, const char *, const char *, const uint8_t *, size_t);
int EVP_PKEY_get_raw_public_key(const void *, uint8_t *, size_t *);
void *EVP_PKEY_CTX_new_from_pkey(void *, void *, const char *);
int EVP_PKEY_encapsulate_init(void *, const void *);
int EVP_PKEY_encapsulate(void *, uint8_t *, size_t *, uint8_t *, size_t *);
int EVP_PKEY_decapsulate_init(void *, const void *);
int EVP_PKEY_decapsulate(void *, uint8_t *, size_t *, const uint8_t *, size_t);
void EVP_PKEY_free(void *);
void EVP_PKEY_CTX_free(void *);

static bool copy(const uint8_t *from, size_t len, chunk *to)
{
	to->ptr = malloc(len);
	to->len = len;
	if (len == 0 || !to->ptr)
		return false;
	memcpy(to->ptr, from, len);
	return true;
}

static bool get_shared_secret(ke *k, chunk *secret) { return copy(k->secret, k->secret_len, secret); }

/* An initiator sends its encapsulation key, a responder the ciphertext that set_public_key has made. */
static bool get_public_key(ke *k, chunk *out)
{
	if (!k->sent_len) {
		k->key = EVP_PKEY_Q_keygen(NULL, NULL, "ML-KEM-768");
		k->sent_len = sizeof k->sent;
		if (!k->key || EVP_PKEY_get_raw_public_key(k->key, k->sent, &k->sent_len) != 1)
			return false;
	}
	return copy(k->sent, k->sent_len, out);
}

static bool set_public_key(ke *k, chunk in)
{
	void *key = k->key ? k->key : EVP_PKEY_new_raw_public_key_ex(NULL, "ML-KEM-768", NULL, in.ptr, in.len), *ctx;
	bool ok;

	if (!key)
		return false;
	ctx = EVP_PKEY_CTX_new_from_pkey(NULL, key, NULL);
	k->secret_len = sizeof k->secret;
	if (k->key) {
		ok = EVP_PKEY_decapsulate_init(ctx, NULL) == 1 && EVP_PKEY_decapsulate(ctx, k->secret, &k->secret_len, in.ptr, in.len) == 1;
	} else {
		k->sent_len = sizeof k->sent;
		ok = EVP_PKEY_encapsulate_init(ctx, NULL) == 1 && EVP_PKEY_encapsulate(ctx, k->sent, &k->sent_len, k->secret, &k->secret_len) == 1;
		EVP_PKEY_free(key);
	}
	EVP_PKEY_CTX_free(ctx);
	return ok;
}

static bool set_seed(ke *k, chunk seed, void *drbg) { return false; }

static int get_method(ke *k) { return ML_KEM_768; }

static void destroy_ke(ke *k)
{
	EVP_PKEY_free(k->key);
	free(k);
}

static ke *create_ke(int method)
{
	ke *k = calloc(1, sizeof *k);

	*k = (ke){ get_shared_secret, set_public_key, get_public_key, set_seed, get_method, destroy_ke };
	return k;
}

static char *get_name(plugin *p) { return "ml"; }

static int get_features(plugin *p, feature **out)
{
	static feature f[] = { { FEATURE_REGISTER, FEATURE_KE, { .reg = { .f = create_ke } } }, { FEATURE_PROVIDE, FEATURE_KE, { .ke = ML_KEM_768 } } };

	*out = f;
	return 2;
}

static void destroy_plugin(plugin *p) { free(p); }

plugin *ml_plugin_create(void)
{
	plugin *p = calloc(1, sizeof *p);

	*p = (plugin){ get_name, get_features, NULL, destroy_plugin };
	return p;
}
