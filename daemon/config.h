/* SPDX-License-Identifier: Apache-2.0
 * daemon/config.h - every setting of membankd, from one table.
 *
 * The table in config.c makes the file parser, the flags, --help,
 * --print-config and the sample membankd.conf. Defaults < file < flags.
 * Life: config_new -> config_read_file, config_read_flags -> config_check ->
 * read its fields -> config_free. A configuration in use is never written to:
 * a reload makes a new one.
 * Threads: immutable once checked, so shared by all. */
#ifndef DAEMON_CONFIG_H
#define DAEMON_CONFIG_H

#include "mb_base.h"
#include "mb_cli.h"

#define CONFIG_MAX_TEXT 512
#define CONFIG_MAX_LIST 8

struct config_list {
    size_t n;
    char items[CONFIG_MAX_LIST][CONFIG_MAX_TEXT];
};

/* One field an option; units are in the names or in the table. */
struct config {
    /* what to serve, where */
    char store[CONFIG_MAX_TEXT];
    char model[CONFIG_MAX_TEXT];
    struct config_list listen;
    bool insecure;
    uint64_t ipc_mode;
    char curve_secret_key_file[CONFIG_MAX_TEXT];
    char curve_allow_file[CONFIG_MAX_TEXT];
    /* log */
    uint64_t log_level; /* mb_log_level */
    char log_file[CONFIG_MAX_TEXT];
    /* threads and memory */
    uint64_t workers;
    uint64_t map_bytes;
    uint64_t max_embedding_bytes;
    uint64_t inline_us;
    uint64_t shutdown_ms;
    /* the model */
    uint64_t model_threads;
    uint64_t model_rows;
    uint64_t model_rows_busy;
    uint64_t model_requests;
    uint64_t model_queue;
    uint64_t model_timeout; /* seconds */
    uint64_t cache_rows;
    uint64_t cache_type; /* mb_cache_type */
    /* long contexts */
    uint64_t context_memory; /* bytes, of those that are open */
    uint64_t context_quota;  /* bytes of one, unless its own is said */
    uint64_t context_bytes;  /* of all; 0: no limit */
    /* limits */
    uint64_t max_message_bytes;
    uint64_t max_client_requests;
    uint64_t max_client_bytes;
    uint64_t max_pending_bytes;
    uint64_t max_documents;
    uint64_t max_k;
    uint64_t max_queries;
    uint64_t max_list;
    uint64_t max_texts;
    /* background work */
    bool refit;
    bool strict_delete;
    uint64_t bank_threads;
    uint64_t bank_nice;
    uint64_t bank_checkpoint; /* seconds */
    uint64_t refit_min_segments;
    uint64_t refit_quiet_ms;
    uint64_t refit_sample;
    uint64_t refit_terms;
    uint64_t flat_below;
    double recall_target;
    /* copies */
    char snapshot_dir[CONFIG_MAX_TEXT];
    bool snapshot_anywhere;
};

typedef enum config_type {
    CONFIG_TEXT,   /* at most CONFIG_MAX_TEXT - 1 bytes */
    CONFIG_LIST,   /* of texts: given several times */
    CONFIG_U64,    /* whole number */
    CONFIG_BYTES,  /* whole number, with k, M, G, T */
    CONFIG_OCTAL,  /* file mode */
    CONFIG_BOOL,   /* yes or no */
    CONFIG_DOUBLE, /* number */
    CONFIG_CHOICE  /* one of the words in unit, kept as their position */
} config_type;

struct config_option {
    const char *name; /* as in files; flags have dashes for underscores */
    config_type type;
    size_t offset; /* of its field in struct config */
    double min;    /* numbers: range, both ends in it */
    double max;
    const char *unit; /* for people; CONFIG_CHOICE: "err|warn|info" */
    const char *def;  /* as it would stand in a file */
    bool live;        /* SIGHUP changes it while running */
    const char *help; /* one line, lower case, no full stop */
};

/* The table; ends with name NULL. */
extern const struct config_option config_options[];

/* With defaults in place. NULL when memory is short. */
struct config *config_new(void);
void config_free(struct config *cfg);

/* Set one option from text. Errors: BAD_ARG (unknown name: says which is
 * near; value out of range: says the range). */
MB_MUST_USE mb_status config_set(struct config *cfg, const char *name,
    const char *value, struct mb_error *err);
/* Errors: IO, NOT_FOUND, BAD_ARG with file and line. */
MB_MUST_USE mb_status config_read_file(
    struct config *cfg, const char *path, struct mb_error *err);
/* Lines of a configuration file; path is for messages. */
MB_MUST_USE mb_status config_read_text(struct config *cfg, const char *path,
    struct mb_slice text, struct mb_error *err);
MB_MUST_USE mb_status config_read_flags(
    struct config *cfg, const struct mb_cli *cli, struct mb_error *err);
/* What single values cannot say: a store is named, endpoints are well formed,
 * none faces a network without keys unless insecure. Fills in the default
 * endpoint. Errors: BAD_ARG, DENIED. */
MB_MUST_USE mb_status config_check(struct config *cfg, struct mb_error *err);
/* True if any endpoint can be reached from other machines. */
bool config_endpoint_is_open(const char *endpoint);

/* As a configuration file. sample: each value is its default and commented
 * out (daemon/membankd.conf); else the values in force. */
MB_MUST_USE mb_status config_write(
    const struct config *cfg, bool sample, struct mb_buffer *out);
/* The value of one option as it would stand in a file; lists: the i-th. */
void config_value(const struct config *cfg, const struct config_option *opt,
    size_t i, char *out, size_t size);

/* membankd's command line, made from the table. NULL when memory is short. */
struct config_program {
    struct mb_cli_program program;
    struct mb_cli_option *options;
    char (*names)[48];
};

struct config_program *config_program_new(void);
void config_program_free(struct config_program *p);

/* Take the live options of `wanted` over into a new configuration whose other
 * values are those of `current`. *n_pending counts differing options that need
 * a restart. NULL when memory is short. */
struct config *config_reload(const struct config *current,
    const struct config *wanted, size_t *n_pending);

#endif
