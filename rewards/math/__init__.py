r"""Mathematics: is the answer in a completion the gold? What a model wrote becomes a verdict, file by file:

domain            the domain as the rest of the program sees it: sources, answer, judge
verifier          a batch of completions: memory of pairs, workers, counts
extract           completion -> the answer it stands by
decide            gold, answer -> equal, different, or open: caps and spellings first, then
  tokens            text -> tokens, one spelling for each thing that has many
  values            tokens -> a number with its unit, words, a list, interval, matrix, relation or family, with the
                    help of parser (expressions, as nodes; cursor, numerals), unit_suffix, quantity_names, set_builder
  equal             two values: members, order, names, chains; and for its parts
                    equal_single (numbers with units, words), equal_expression (exactly or to many digits),
                    relations, real_sets (inequalities, ends), families
  units, vocabulary, nodes, arithmetics, exact     what these share
symbolic_pool     what stays open, asked of processes of their own (symbolic_worker), which may be killed
cases             one verdict explained; agreement with a file of labelled cases
"""
