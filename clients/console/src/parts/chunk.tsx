import { Table } from "@mantine/core";
import { type ReactNode, useEffect, useRef, useState } from "react";

/** How many rows a chunk has. */
export const chunkRows = 50;
/** How far from what is seen a chunk is still rendered. */
const margin = "1500px 0px";

type Props = {
  readonly columns: number;
  /** Renders it wherever it is, as for a file of the whole table. */
  readonly whole: boolean;
  /** Its rows; called only when it is rendered. */
  readonly render: () => ReactNode;
};

/** Some rows of a long table. Out of sight it is one empty row of the same height, so that a table of any length is no more elements than fit on a few screens. */
export function Chunk({ columns, whole, render }: Props) {
  const body = useRef<HTMLTableSectionElement>(null);
  const [heightPx, setHeight] = useState<number>();
  useEffect(() => {
    const element = body.current;
    if (!element) return;
    const observer = new IntersectionObserver(
      (entries) => {
        // Of several, the last one tells how it is.
        const entry = entries.at(-1);
        // What has the focus keeps it.
        if (entry && !entry.isIntersecting && !element.contains(document.activeElement))
          setHeight((before) => before ?? entry.boundingClientRect.height);
        else setHeight(undefined);
      },
      { rootMargin: margin },
    );
    observer.observe(element);
    return () => observer.disconnect();
  }, []);
  return (
    <Table.Tbody ref={body}>
      {heightPx === undefined || whole ? (
        render()
      ) : (
        <tr aria-hidden style={{ height: heightPx }}>
          <td colSpan={columns} />
        </tr>
      )}
    </Table.Tbody>
  );
}
