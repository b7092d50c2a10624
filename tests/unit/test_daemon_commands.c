/* SPDX-License-Identifier: Apache-2.0
 * tests/unit/test_daemon_commands.c - the table of operations agrees with
 * PROTOCOL.md, and its examples with the vectors. */
#include "mb_test.h"

#include "commands.h"
#include "mb_vectors.h"
#include "mb_wire.h"

static char *
protocol(void)
{
    size_t size;

    return (char *)mb_test_read_file(
        MB_SOURCE_DIR "/daemon/PROTOCOL.md", &size);
}

/* The section "### NAME", up to the next heading; NULL if there is none. */
static char *
section_of(const char *text, const char *name)
{
    char head[64];

    snprintf(head, sizeof head, "\n### %s\n", name);
    const char *start = strstr(text, head);
    if (start == NULL)
        return NULL;
    start += strlen(head);
    const char *end = strstr(start, "\n##");
    return mb_strndup(
        start, end != NULL ? (size_t)(end - start) : strlen(start));
}

static void
test_commands_when_in_the_table_then_documented(void **state)
{
    MB_TEST_UNUSED(state);
    char *text = protocol();

    for (const struct command *cmd = commands; cmd->name != NULL; cmd++) {
        char *section = section_of(text, cmd->name);

        if (cmd->fn == NULL) {
            if (strstr(text, cmd->name) == NULL)
                fail_msg("%s is not named", cmd->name);
        } else if (section == NULL) {
            fail_msg("%s has no section", cmd->name);
        }
        for (const struct command_arg *a = cmd->args;
             section != NULL && a->name != NULL; a++) {
            char quoted[64];

            snprintf(quoted, sizeof quoted, "`%s`", a->name);
            if (strstr(section, quoted) == NULL)
                fail_msg("%s: argument %s", cmd->name, a->name);
        }
        mb_free(section);
    }
    mb_free(text);
}

static void
test_commands_when_listed_then_found_and_ended(void **state)
{
    MB_TEST_UNUSED(state);
    for (size_t i = 0; i < commands_count(); i++) {
        assert_ptr_equal(
            &commands[i], commands_find(mb_slice_cstr(commands[i].name)));
        assert_null(commands[i].args[COMMAND_MAX_ARGS - 1].name);
    }
    assert_null(commands[commands_count()].name);
    assert_null(commands_find(mb_slice_cstr("pong")));
}

static void
test_errors_when_in_the_table_then_documented(void **state)
{
    MB_TEST_UNUSED(state);
    char *text = protocol();

    for (int st = 1; st <= MB_ERR_DENIED; st++) {
        char row[96];

        snprintf(row, sizeof row, "| %d | %s | %s |", st,
            mb_status_name((mb_status)st),
            mb_status_may_retry((mb_status)st) ? "yes" : "no");
        if (strstr(text, row) == NULL)
            fail_msg("no row: %s", row);
    }
    mb_free(text);
}

/* Hex digits of the document without what lies between them. */
static char *
only_hex(const char *text)
{
    char *out = mb_alloc(strlen(text) + 1);
    size_t n = 0;

    for (const char *line = text; *line != 0;) {
        const char *end = strchr(line, '\n');
        size_t size = end != NULL ? (size_t)(end - line) : strlen(line);
        bool bytes = size > 7 && strncmp(line, "    ", 4) == 0 &&
                     (strncmp(line + 4, "C: ", 3) == 0 ||
                         strncmp(line + 4, "D: ", 3) == 0 ||
                         strncmp(line + 4, "   ", 3) == 0);

        for (size_t i = 7; bytes && i < size; i++) {
            if (line[i] != ' ')
                out[n++] = line[i];
        }
        out[n++] = '.';
        line += end != NULL ? size + 1 : size;
    }
    out[n] = 0;
    return out;
}

/* Bytes of an example run over lines: dots between them do not count. */
static void
check_vector(const struct mb_vector *v, void *arg)
{
    const char *hex = arg;
    char first[65];
    size_t n = 0;

    for (size_t i = 0; i < v->size && i < 32; i++) {
        snprintf(first + n, 3, "%02x", v->bytes[i]);
        n += 2;
    }
    if (strstr(hex, first) == NULL)
        fail_msg("%s: not in PROTOCOL.md", v->columns[0]);
    if (strstr(v->columns[0], "cut") == NULL ||
        strstr(v->columns[0], "reply") != NULL) {
        struct mb_arena *arena = mb_arena_new(1u << 20);
        const struct mb_value *value;
        struct mb_error err = {0};

        assert_status(MB_OK,
            mb_wire_parse(mb_slice_of(v->bytes, v->size), NULL, true, arena,
                &value, &err),
            &err);
        mb_arena_free(arena);
    }
}

static void
test_examples_when_in_vectors_then_in_the_document(void **state)
{
    MB_TEST_UNUSED(state);
    char *text = protocol();
    char *hex = only_hex(text);

    assert_true(mb_vectors_read("wire/protocol.hex", check_vector, hex) >= 50);
    mb_free(hex);
    mb_free(text);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_commands_when_in_the_table_then_documented),
        cmocka_unit_test(test_commands_when_listed_then_found_and_ended),
        cmocka_unit_test(test_errors_when_in_the_table_then_documented),
        cmocka_unit_test(test_examples_when_in_vectors_then_in_the_document),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
