"""Raw data sets to WebDataset shards: readers, tiling, codecs, plan, writing, checks. No cluster software here."""
