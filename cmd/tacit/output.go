package main

// How all verbs speak:
//
//   - standard output holds what was asked for: records that a zone file takes, JSON, and the tables of verbs whose purpose is a
//     table (status, lookup, demo). Nothing else, so that it can be redirected.
//   - standard error holds prose: what was done, hints, errors. A line begins with "tacit: ", but for an error that has a place: its
//     line begins with file:line:column, as editors expect.
//   - Messages are sentences in lower case without a full stop. A hint says what to do and stands on a line of its own.
//   - JSON is indented and ends with a newline. Times are RFC 3339, durations say their unit in the field's name.
//   - Text that came from outside (names, records, reasons) goes through clean, in prose and tables; JSON escapes by itself.
//   - No colours, no progress, no questions.

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"tacit/config"
	"tacit/control"
)

// clean makes text from outside fit for a terminal (TRUST.md A-53).
func clean(s string) string { return control.Clean(s) }

// say writes a line of prose.
func say(stderr io.Writer, format string, args ...any) {
	fmt.Fprintf(stderr, "tacit: %s\n", fmt.Sprintf(format, args...))
}

// complain writes an error: a line for each thing that is wrong.
func complain(stderr io.Writer, err error) {
	if places := (config.Errors)(nil); errors.As(err, &places) {
		for _, e := range places {
			fmt.Fprintln(stderr, e)
		}
		return
	}
	for line := range strings.SplitSeq(err.Error(), "\n") {
		if strings.TrimSpace(line) != "" {
			say(stderr, "%s", clean(line))
		}
	}
}

// writeJSON writes what programs read.
func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// table writes rows with aligned columns, indented by two spaces. Cells are cleaned; empty ones at a row's end leave no blanks.
func table(w io.Writer, rows [][]string) error {
	var b strings.Builder
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		cells := make([]string, len(row))
		for i, c := range row {
			cells[i] = clean(c)
		}
		fmt.Fprintln(t, "  "+strings.Join(cells, "\t"))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for line := range strings.Lines(b.String()) {
		if _, err := fmt.Fprintln(w, strings.TrimRight(line, " \n")); err != nil {
			return err
		}
	}
	return nil
}
