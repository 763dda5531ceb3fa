// Tables as text: lines of cells between separators, some of them in quotes (RFC 4180).
//
// A number is what Python's float() takes, to the bit, but for underscores; its decimal mark may be
// a comma. A cell that is empty, or NA or the like, is missing. Everything else is a word.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace vegrad {

struct CsvForm {
  char separator = ',', decimal = '.';
};

// What was met in a column.
struct CsvColumn {
  std::int64_t words = 0, missing = 0;
  std::int64_t first_word = -1;  // the row of the first; -1 if there is none
};

struct CsvContent {
  std::int64_t rows = 0;
  std::int64_t empty_rows = 0;  // lines of separators alone, which are no rows
  std::vector<CsvColumn> columns;
  // The first line with another number of cells than there are columns; 0 if there is none.
  std::int64_t uneven_line = 0, cells_there = 0;
  std::int64_t broken_line = 0;  // where a quote is not closed, or text follows it; 0 if nowhere
};

// No more rows than these are in the text.
std::int64_t most_csv_rows(const char* begin, const char* end);

// The cells as numbers (rows, columns), NaN for what is none, and the line that each row begins in,
// the first of the text being `line`. The cell of column c goes to place[c] of its row. *end is
// readable and no digit.
CsvContent read_csv_numbers(const char* begin, const char* end, CsvForm form,
                            const std::vector<int>& place, std::int64_t line, double* numbers,
                            std::int64_t* lines);

// The cells of the chosen columns as text without the blanks round it, column by column. The text
// was read by read_csv_numbers, which found nothing wrong with it.
std::vector<std::vector<std::string>> read_csv_words(const char* begin, const char* end,
                                                     CsvForm form, const std::vector<int>& chosen);

}  // namespace vegrad
