"""One file for each figure, table or question; named as the option of `experiment=`."""
